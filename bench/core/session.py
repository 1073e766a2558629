"""One run of a benchmark: on which device, for how long, how its calls are timed, and its command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from bench.core.alternatives import is_ours
from bench.core.gpu_timing import interleave_on_gpu
from bench.core.machine import gpu_machine, machine
from bench.core.report import Claim, Report, Row, markdown, show
from bench.core.roofline import Ceilings, measure_ceilings, measure_gpu_ceilings
from genkernels.timing import Timing, interleave

Case = TypeVar("Case")
Alternative = TypeVar("Alternative")


@dataclass(frozen=True)
class Device:
    """What a benchmark runs on.

    Attributes:
        name: "cpu" or "cuda": the place of the tensors.
        dtype: of the tensors.
        interleave: (calls, seconds=, min_rounds=) -> their timings.
        ceilings: -> what the device can do at most, measured.
        machine: -> its description for the report.
        is_gpu: whether the GPU's cases and alternatives are those to run.
    """

    name: str
    dtype: torch.dtype
    interleave: Callable[..., dict[str, Timing]]
    ceilings: Callable[[], Ceilings]
    machine: Callable[[], dict[str, Any]]
    is_gpu: bool


CPU = Device("cpu", torch.float32, interleave, measure_ceilings, machine, is_gpu=False)


def gpu(dtype: torch.dtype, timed: Callable[..., dict[str, Timing]] = interleave_on_gpu) -> Device:
    """A GPU on tensors of that dtype, its calls timed as CUDA graphs unless said otherwise."""
    return Device("cuda", dtype, timed, partial(measure_gpu_ceilings, dtype), gpu_machine, is_gpu=True)


@dataclass(frozen=True)
class Budget:
    """Seconds and rounds that each case is timed for at least; of a quick run, at most so many seconds."""

    seconds: float
    rounds: int = 11
    quick_seconds: float = 0.5
    quick_rounds: int = 3


@dataclass
class Session:
    """One run of a benchmark, and what all of them do alike.

    Attributes:
        device: see :class:`Device`.
        seconds, min_rounds: of each case.
        quick: whether it is to be seen only that everything runs.
        compiled: whether torch.compile is wanted, where a benchmark leaves that to the user; None for its own choice.
        left_out: alternatives that did not run here, and why.
        ceilings: of the device, the higher of those measured before and after.
    """

    device: Device
    seconds: float
    min_rounds: int
    quick: bool = False
    compiled: bool | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    ceilings: Ceilings | None = None

    def time(self, calls: Mapping[str, Callable[[], object]], **options: Any) -> dict[str, Timing]:
        """Seconds per call of each, all in turn."""
        return self.device.interleave(calls, **{"seconds": self.seconds, "min_rounds": self.min_rounds, **options})

    def over(self, cases: Iterable[Case], measure: Callable[[Session, Case], list[Row]]) -> dict[Case, list[Row]]:
        """The rows of each case, the ceilings measured before and after."""
        before = self.device.ceilings()
        rows = {}
        for case in cases:
            print(f"{case} ...", flush=True)
            rows[case] = measure(self, case)
        self.ceilings = before.highest(self.device.ceilings())
        return rows

    def build(self, names: Iterable[str], make: Callable[[str], Alternative], case: object) -> dict[str, Alternative]:
        """The alternatives by name; on a GPU one of theirs that fails is left out, and why is noted."""
        built = {}
        for name in names:
            try:
                built[name] = make(name)
            except Exception as error:
                if is_ours(name) or not self.device.is_gpu:
                    raise
                self.left_out[f"{case}: {name}"] = f"{type(error).__name__}: {error}"
                print(f"left out: {name}: {type(error).__name__}: {error}", flush=True)
        return built

    def report(
        self, benchmark: str, title: str, rows: Iterable[Row], claims: Iterable[Claim], **settings: Any
    ) -> Report:
        """The finished report; a GPU's is called gpu_<benchmark>, with what was left out in its settings."""
        assert self.ceilings is not None, "rows are measured by over()"
        if self.device.is_gpu:
            benchmark, settings = f"gpu_{benchmark}", {"left_out": self.left_out, **settings}
        return Report(
            benchmark=benchmark,
            title=title,
            ceilings=self.ceilings,
            rows=tuple(rows),
            claims=tuple(claims),
            settings={"quick": self.quick, "seconds": self.seconds, "min_rounds": self.min_rounds, **settings},
            machine=self.device.machine(),
        )


def command_line(
    run: Callable[[Session], Report], prog: str, devices: Mapping[str, tuple[Device, Budget]], *, compiles: bool = False
) -> None:
    """Command line of a benchmark: measure, show, and write the JSON if told to.

    Args:
        run: measures.
        prog: the module, for the usage text.
        devices: what it runs on, the usual one first, and for how long.
        compiles: whether the user chooses if torch.compile is timed.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description="Measure and print the tables.")
    parser.add_argument("--device", choices=list(devices), default=next(iter(devices)))
    parser.add_argument("--quick", action="store_true", help="few repeats: to see that it runs, not to quote")
    seconds = " or ".join(f"{budget.seconds:g} on {name}" for name, (_, budget) in devices.items())
    parser.add_argument("--seconds", type=float, help=f"for each case (default: {seconds})")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PLACE",
        help="write PLACE/<machine>/<benchmark>.json, or PLACE if it ends in .json",
    )
    if compiles:
        parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="time torch.compile")
    options = parser.parse_args()
    device, budget = devices[options.device]
    if device.is_gpu:
        if not torch.cuda.is_available():
            parser.exit(2, f"{prog}: PyTorch finds no CUDA GPU here\n")
        torch.backends.cudnn.benchmark = True  # cuDNN tries its algorithms, as a user who wants speed lets it
    length = budget.seconds if options.seconds is None else options.seconds
    seconds_of_case = min(length, budget.quick_seconds) if options.quick else length
    rounds = budget.quick_rounds if options.quick else budget.rounds
    session = Session(device, seconds_of_case, rounds, options.quick, getattr(options, "compile", None))
    done = run(session)
    if options.json:
        print(f"written: {done.save(options.json)}")
    if device.is_gpu:
        print(markdown(done, full=True))  # a machine that is lent for minutes has no rich
    else:
        show(done)
