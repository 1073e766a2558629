"""Row LSTM and Diagonal LSTM: ours against the loops of public code, eager and compiled.

    python -m bench.wavefront_lstm [--device cpu|cuda] [--quick] [--compile] [--seconds S] [--json PLACE]

times all alternatives in turn, prints the tables and the summary, and writes wavefront_lstm.json or
gpu_wavefront_lstm.json.

    pytest bench/wavefront_lstm.py --benchmark-only [-k NAME]

runs the same callables on the CPU under pytest-benchmark.

On the CPU a case is a layer on h channels: input-to-state convolution (1x1, or masked 1x3 for rows) to 4h, and the
recurrence, in one direction of the Diagonal LSTM. What torch.compile is given is one step of the loop, and the summary
says for how long it compiles. Given the whole loop it unrolls some fifty steps, forward and backward, and was not done
after 5.8 minutes on two cores. Peak memory is what one step adds to a fresh process.

On a GPU a case is the recurrence in both directions over gates that are there already, since the product before it is
the same for all, in bfloat16. The loops are timed as they are and captured in a CUDA graph; torch.compile unrolls sixty
steps, which takes minutes, and is timed with --compile alone. Times are those of many calls behind each other with one
wait at the end, so a launch that hides behind the one before it counts as little as in a training loop.

Every alternative is checked against float64 (output and all gradients) before it is timed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.core.checks import check_equal
from bench.core.gpu_timing import captured, interleave_queued
from bench.core.report import Claim, Report, Row
from bench.core.roofline import Ceilings, Work
from bench.core.session import CPU, Budget, Device, Session, command_line, gpu
from bench.wavefront_lstm_baselines import fused_loop, public_loop, row_loop, row_step, skewed_loop, skewed_step
from genkernels import ops

FORWARD = "forward"
STEP = "forward + backward"
EAGER = "skewed loop"
EAGER_ROW = "row loop"
COMPILED = "torch.compile of a step"
OURS = ("ours", "ours, channels_last", "ours, checkpoint")
TOLERANCE = 1e-4  # float32 against float64 over some fifty steps
FORWARD_TARGET = 8.0
MEMORY_TARGET = 1 / 0.6
FLOOR_TARGET = 0.5  # of the first case, within twice the arithmetic floor
COMPILED_TARGET = 7.0  # of the first case


@dataclass(frozen=True)
class Case:
    """One layer: its geometry, on how much, and how many times quicker than eager forward and backward are to be."""

    geometry: str
    batch: int
    hidden: int
    size: int
    target: float

    def __str__(self) -> str:
        return f"{self.geometry}, {self.batch}×{self.hidden}, {self.size}²"

    @property
    def eager(self) -> str:
        return EAGER if self.geometry == "diagonal" else EAGER_ROW

    @property
    def steps(self) -> int:
        return self.size if self.geometry == "row" else 2 * self.size - 1

    def work(self, *, backward: bool) -> Work:
        """Multiply-adds of the live taps, of input and state, at the real pixels; each tensor read or written once.

        Backward does the forward's arithmetic twice more: for what was read, and for the weights.
        """
        pixels, h = self.batch * self.size**2, self.hidden
        taps = (2 + 3) if self.geometry == "row" else (1 + 2)  # of the 1x3 mask B two are live
        flops, weights = 2 * pixels * taps * 4 * h * h, taps * 4 * h * h
        forward = Work(flops, 4 * (2 * pixels * h + weights))
        return forward + Work(2 * flops, 4 * (3 * pixels * h + 2 * weights)) if backward else forward


CASES = (
    Case("diagonal", 16, 64, 28, 10),
    Case("diagonal", 16, 128, 32, 20),
    Case("diagonal", 1, 64, 28, 8),
    Case("row", 16, 64, 28, 8),
    Case("row", 16, 128, 32, 8),
    Case("row", 1, 64, 28, 8),
)


# --- the alternatives -------------------------------------------------------------------------------------------

Layer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # x, input weight, input bias, Conv1d weight -> h


def ours(geometry: str, checkpoint: bool) -> Layer:
    def layer(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> Tensor:
        taps = state.permute(2, 0, 1)  # [4h, h, k] -> [k, 4h, h]
        if geometry == "row":
            return ops.row_lstm_layer(x, weight, bias, taps, checkpoint=checkpoint)
        return ops.diagonal_lstm_layer(x, weight, bias, taps, taps=(-1, 0), checkpoint=checkpoint)

    return layer


# A forward pass; a forward and backward pass that returns h and the gradients.
Calls = tuple[Callable[[], Tensor], Callable[[], tuple[Tensor, ...]]]


def calls_of(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> Calls:
    def forward() -> Tensor:
        with torch.no_grad():
            return function(*inputs)

    def step() -> tuple[Tensor, ...]:
        y = function(*inputs)
        return (y, *torch.autograd.grad(y, inputs, grad))

    return forward, step


class Problem:
    """The tensors of a case, and every alternative as a pair of calls."""

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        h, taps = case.hidden, 3 if case.geometry == "row" else 2
        width = 3 if case.geometry == "row" else 1

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        self.case = case
        image = (case.batch, h, case.size, case.size)
        self.x, self.grad = random(*image), random(*image)
        self.parameters = [random(4 * h, h, 1, width), random(4 * h), random(4 * h, h, taps)]
        for weight, inputs in zip(self.parameters, (h * width, 1, h * taps), strict=True):
            weight.div_(inputs**0.5).requires_grad_()

    def layer(self, name: str) -> Layer:
        if name in OURS:
            return ours(self.case.geometry, "checkpoint" in name)
        loop, step = (skewed_loop, skewed_step) if self.case.geometry == "diagonal" else (row_loop, row_step)
        return partial(loop, step=torch.compile(step, dynamic=False, fullgraph=True)) if name == COMPILED else loop

    def calls(self, name: str) -> Calls:
        layer = self.layer(name)
        layout = torch.channels_last if "channels_last" in name else torch.contiguous_format
        x = self.x.contiguous(memory_format=layout).requires_grad_()
        grad = self.grad.contiguous(memory_format=layout)
        return calls_of(layer, [x, *self.parameters], grad)

    def reference(self) -> tuple[Tensor, ...]:
        """h and the gradients of the loop in float64."""
        x, *parameters = (t.detach().double().requires_grad_() for t in (self.x, *self.parameters))
        y = self.layer(self.case.eager)(x, *parameters)
        return (y.detach(), *torch.autograd.grad(y, [x, *parameters], self.grad.double()))


def names(case: Case) -> list[str]:
    return [*OURS, case.eager, COMPILED]


# --- peak memory ------------------------------------------------------------------------------------------------


def peak_memory(case: Case, name: str) -> int:
    """Bytes that one step adds to a fresh process at its peak."""
    code = f"from bench.wavefront_lstm import print_peak; print_peak({CASES.index(case)}, {name!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    return int(done.stdout)


def print_peak(index: int, name: str) -> None:
    """Run one step and print by how much the process grew meanwhile. A tiny step has loaded all code before."""
    case = CASES[index]
    Problem(Case(case.geometry, 2, 8, 4, 0)).calls(name)[1]()
    step = Problem(case).calls(name)[1]
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is in use
    before = _status("VmHWM")
    step()
    print(_status("VmHWM") - before)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


# --- all in turn ------------------------------------------------------------------------------------------------


def measure(session: Session, case: Case, compiling: list[Claim]) -> list[Row]:
    """Check, then time, every alternative for one case; notes how long torch.compile takes."""
    problem = Problem(case)
    torch.compiler.reset()  # else every case counts as a recompilation of the same step
    calls = {name: problem.calls(name) for name in names(case)}
    start = time.perf_counter()
    with torch._inductor.config.patch(force_disable_caches=True):  # of earlier runs
        for call in calls[COMPILED]:
            call()
    compiling.append(Claim(f"{case}: {COMPILED} compiles for", time.perf_counter() - start, " s"))
    check_equal({name: step() for name, (_, step) in calls.items()}, problem.reference(), tolerance=TOLERANCE)
    return [
        Row(
            group=group,
            case=str(case),
            timings=session.time(
                {name: pair[index] for name, pair in calls.items() if group == STEP or "checkpoint" not in name}
            ),
            ours=OURS if group == STEP else OURS[:2],
            baseline=case.eager,
            work=case.work(backward=group == STEP),
        )
        for index, group in enumerate((FORWARD, STEP))
    ]


def summarise(case: Case, rows: list[Row], ceilings: Ceilings) -> list[Claim]:
    """Speed-ups, share of peak, µs per step, and peak memory of one case."""
    claims = []
    for row, target in zip(rows, (FORWARD_TARGET, case.target), strict=True):
        text = f"{case}, {row.group}:"
        claims.append(Claim(f"{text} over {case.eager}", row.speed_up(case.eager), "×", target))
        first = row.group == STEP and case == CASES[0]
        goal = COMPILED_TARGET if first else None
        claims.append(Claim(f"{text} over {COMPILED}", row.speed_up(COMPILED), "×", goal))
        assert row.work is not None
        best = row.timings[row.best_ours()].median
        goal = FLOOR_TARGET if first else None
        claims.append(Claim(f"{text} share of peak, better layout", ceilings.share_of_peak(row.work, best), "%", goal))
        claims.append(Claim(f"{text} per step", row.timings[OURS[0]].median / case.steps * 1e6, " µs"))
    memory = {name: peak_memory(case, name) for name in (*OURS, case.eager)}
    text = f"{case}, {STEP}: peak memory of {case.eager} ({memory[case.eager] / 1e6:.0f} MB) over"
    for name in (OURS[0], OURS[2]):
        goal = MEMORY_TARGET if name == OURS[0] else None
        claims.append(
            Claim(f"{text} {name} ({memory[name] / 1e6:.0f} MB)", memory[case.eager] / max(memory[name], 1), "×", goal)
        )
    return claims


# --- on a GPU ---------------------------------------------------------------------------------------------------

PUBLIC = "Conv1d loop"
FUSED = "one product a step"
GPU_COMPILED = f"{FUSED}, torch.compile"
GRAPH = ", CUDA graph"
GPU_OURS = ("ours", f"ours{GRAPH}")
GPU_TOLERANCE = 0.05  # bfloat16 against float64 over some sixty steps
# gates_left, gates_right, weight_left, weight_right -> h
RECURRENCES: dict[str, Callable[..., Tensor]] = {
    GPU_OURS[0]: ops.diagonal_bilstm, PUBLIC: public_loop, FUSED: fused_loop,
}  # fmt: skip


@dataclass(frozen=True)
class BiLstmCase:
    batch: int
    hidden: int
    size: int

    def __str__(self) -> str:
        return f"{self.batch}×{self.hidden}, {self.size}²"

    @property
    def steps(self) -> int:
        return 2 * self.size - 1

    def work(self, *, backward: bool) -> Work:
        """Products of both directions at the real pixels, in bfloat16; each tensor read or written once."""
        pixels, h = self.batch * self.size**2, self.hidden
        flops = 2 * (2 * pixels * 2 * 4 * h * h)
        forward = Work(flops, 2 * (2 * pixels * 5 * h + 2 * 2 * 4 * h * h))
        return forward + Work(2 * flops, 2 * forward.bytes) if backward else forward


GPU_CASES = (BiLstmCase(64, 128, 32), BiLstmCase(16, 64, 28))  # torch.compile is given the first


class BiLstmProblem:
    """The tensors of a case, and what an alternative computes from them."""

    def __init__(self, case: BiLstmCase, device: Device) -> None:
        generator = torch.Generator().manual_seed(0)
        h = case.hidden

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=generator) * scale).to(device.name, device.dtype)

        gates, weight = (case.batch, 4 * h, case.size, case.size), (2, 4 * h, h)
        self.inputs = [random(*gates).contiguous(memory_format=torch.channels_last) for _ in range(2)]
        self.inputs += [random(*weight, scale=(2 * h) ** -0.5) for _ in range(2)]
        self.grad = random(case.batch, h, case.size, case.size).contiguous(memory_format=torch.channels_last)

    def calls(self, recurrence: Callable[..., Tensor]) -> Calls:
        return calls_of(recurrence, [t.detach().requires_grad_() for t in self.inputs], self.grad)

    def reference(self) -> tuple[Tensor, ...]:
        """h and the gradients of a loop in float64."""
        inputs = [t.detach().double().requires_grad_() for t in self.inputs]
        y = fused_loop(*inputs)
        return (y.detach(), *torch.autograd.grad(y, inputs, self.grad.double()))


def measure_on_gpu(session: Session, case: BiLstmCase, claims: list[Claim], compiled: bool) -> list[Row]:
    """Check, then time, every alternative for one case; notes what follows in ``claims``."""
    problem = BiLstmProblem(case, session.device)
    calls = {name: problem.calls(recurrence) for name, recurrence in RECURRENCES.items()}
    if compiled:
        forward, step = calls[GPU_COMPILED] = problem.calls(torch.compile(fused_loop, dynamic=False, fullgraph=True))
        start = time.perf_counter()
        forward(), step()
        claims.append(Claim(f"{case}: {GPU_COMPILED} compiles for", time.perf_counter() - start, " s"))
    for name, pair in list(calls.items()):
        calls[name + GRAPH] = (captured(pair[0]), captured(pair[1]))
    check_equal({name: step() for name, (_, step) in calls.items()}, problem.reference(), tolerance=GPU_TOLERANCE)
    rows = []
    for index, group in enumerate((FORWARD, STEP)):
        row = Row(
            group=group,
            case=str(case),
            timings=session.time({name: pair[index] for name, pair in calls.items()}),
            ours=GPU_OURS,
            baseline=PUBLIC,
            work=case.work(backward=group == STEP),
        )
        rows.append(row)
        text, best = f"{case}, {group}:", row.best_other()
        claims.append(Claim(f"{text} per step", row.timings[GPU_OURS[0]].median / case.steps * 1e6, " µs"))
        claims.append(Claim(f"{text} over {PUBLIC}", row.speed_up(PUBLIC), "×"))
        claims.append(Claim(f"{text} over {best}, the quickest other", row.speed_up(best, row.best_ours()), "×"))
    return rows


def run(session: Session, cases: Sequence[Case] | None = None) -> Report:
    """Measure everything on the CPU."""
    compiling: list[Claim] = []
    measured = session.over(cases or CASES, partial(measure, compiling=compiling))
    assert session.ceilings is not None
    claims = [claim for case, rows in measured.items() for claim in summarise(case, rows, session.ceilings)]
    rows = [row for rows in measured.values() for row in rows]
    return session.report("wavefront_lstm", "Row LSTM and Diagonal LSTM layers, float32", rows, [*claims, *compiling])


def run_on_gpu(session: Session, cases: Sequence[BiLstmCase] = GPU_CASES) -> Report:
    """Measure everything on a GPU."""
    claims: list[Claim] = []
    compiled = bool(session.compiled)

    def one(session: Session, case: BiLstmCase) -> list[Row]:
        return measure_on_gpu(session, case, claims, compiled and case == cases[0])

    rows = [row for rows in session.over(cases, one).values() for row in rows]
    title = "Diagonal BiLSTM recurrences on a GPU, bfloat16"
    return session.report("wavefront_lstm", title, rows, claims, compiled=compiled)


# --- pytest-benchmark -------------------------------------------------------------------------------------------

PARAMETERS = [pytest.param(case, name, id=f"{case}-{name}") for case in CASES for name in names(case)]


@pytest.mark.parametrize(("case", "name"), PARAMETERS)
def test_forward(benchmark: Any, case: Case, name: str) -> None:
    _bench(benchmark, case, name, FORWARD)


@pytest.mark.parametrize(("case", "name"), PARAMETERS)
def test_forward_and_backward(benchmark: Any, case: Case, name: str) -> None:
    _bench(benchmark, case, name, STEP)


def _bench(benchmark: Any, case: Case, name: str, group: str) -> None:
    problem = Problem(case)
    forward, step = problem.calls(name)
    check_equal({name: step()}, problem.reference(), tolerance=TOLERANCE)
    benchmark.group = f"{case}, {group}"
    benchmark(forward if group == FORWARD else step)


if __name__ == "__main__":
    devices = {"cpu": (CPU, Budget(10.0)), "cuda": (gpu(torch.bfloat16, interleave_queued), Budget(1.0))}
    command_line(
        lambda session: run_on_gpu(session) if session.device.is_gpu else run(session),
        "bench.wavefront_lstm", devices, compiles=True,
    )  # fmt: skip
