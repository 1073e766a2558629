"""Sampling on a GPU: ours, one launch for whole images, against full forward passes and a cached PyTorch sampler.

    python -m bench.gpu_sampler [--seconds S] [--json FILE]

Drawn is a whole batch, float32. "Full forwards" is one forward pass for each sub-pixel, captured in a CUDA graph: one
pass is timed and multiplied by the number of sub-pixels. "Cached PyTorch" runs the same sampling program as ours in
plain PyTorch on the GPU, to the end; its CUDA graph holds one row in the middle of the image, whose time is multiplied
by the number of rows, since a graph of a whole image would have some hundred thousand nodes.

Before anything is timed, our logits on given images are compared with those of a float64 forward pass, and our
samples with the cached PyTorch sampler's from the same uniforms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.gpu_tools import check_as_exact, command_line, gpu_machine, measure_gpu_ceilings
from bench.gpu_wavefront_lstm import captured
from bench.report import Claim, Report, Row
from bench.roofline import Work
from bench.timing import MismatchError, Timing, interleave, summarise
from genkernels import sampling
from genkernels.models import GatedPixelCNN, PixelCNN
from genkernels.sampling.executors import pytorch, registry
from genkernels.sampling.executors.run_arguments import Run
from genkernels.sampling.request import Request, check_request

GRAPH = ", CUDA graph"
OURS, CACHED, FULL = "ours", "cached PyTorch", f"full forwards{GRAPH}"
CACHED_ROUNDS = 2  # each takes seconds
# Of the images, the least that must be the cached PyTorch sampler's: where a uniform falls within rounding of a level's
# boundary, the rest of an image goes on differently.
EQUAL_IMAGES = 0.9
DEVICE, BACKEND = "cuda", "cuda"  # replaced in tests


@dataclass(frozen=True)
class Case:
    """A model, a batch, and what was promised: the most seconds, the least over full forwards and cached sampling."""

    name: str
    make: Callable[[], Any]
    size: tuple[int, int, int]
    batch: int
    seconds: float | None = None
    over_full: float | None = None
    over_cached_graph: float | None = None

    def __str__(self) -> str:
        return f"{self.name}, batch {self.batch}"


CASES = (
    Case("PixelCNN 7×64, 28², 256 levels", PixelCNN, (1, 28, 28), 128, 0.06, 50, 10),
    Case("GatedPixelCNN 8×64, 32² RGB, 256 levels", lambda: GatedPixelCNN(3, image_size=32), (3, 32, 32), 128, 1.0),
)


class Sampling:
    """One case, ready to be timed."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case, self.model = case, case.make().eval().to(DEVICE)
        self.shape = (case.batch, *case.size)
        self.uniforms = torch.rand(self.shape)
        self.table = self.model._scaled(torch.arange(self.model.levels, device=DEVICE))
        self.given = torch.randint(0, self.model.levels, self.shape).to(DEVICE, torch.uint8)
        with torch.no_grad():
            self.program = sampling.compile_program(self.model, self.model.predict, self.shape, self.table)

    def request(self) -> Request:
        return check_request(
            self.shape, self.model.levels, torch.device(DEVICE), uniforms=self.uniforms, given=None, known=None,
            temperature=1.0, top_k=None, generator=None,
        )  # fmt: skip

    def run(self) -> Run:
        return registry.run_of(self.request(), slice(0, self.case.batch), lambda y: None)

    @torch.no_grad()
    def draw(self, backend: str) -> Tensor:
        """As a user has it drawn, from the model to the images."""
        return sampling.sample(self.model, self.model.predict, self.table, self.request(), backend=backend)

    @torch.no_grad()
    def forward(self) -> Tensor:
        return self.model.predict(self.table[self.given.long()], None)

    def check(self) -> None:
        """Raise a MismatchError unless logits and samples are those of the alternatives."""
        few = self.given[:2]
        with torch.no_grad():
            results = {
                OURS: [sampling.teacher_forced(self.program, few, BACKEND)],
                CACHED: [sampling.teacher_forced(self.program, few, "torch")],
            }
            exact = self.model.double().predict(self.table.double()[few.long()], None)
            self.model.float()
        check_as_exact(results, [exact], peer=CACHED, ours=(OURS,))
        same = (self.draw(BACKEND) == self.draw("torch")).flatten(1).all(1).float().mean().item()
        if same < EQUAL_IMAGES:
            raise MismatchError(f"{OURS}: only {same:.1%} of the images are those of the cached PyTorch sampler")

    def work(self) -> Work:
        """The multiply-adds of the program, and every weight and image once."""
        weights = sum(p.numel() for p in self.model.parameters())
        return Work(2 * self.case.batch * self.program.multiplications(), 4 * (weights + self.uniforms.numel()))


def waited_for(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


def times(timing: Timing, count: int) -> Timing:
    return Timing(timing.median * count, timing.p20 * count, timing.p80 * count, timing.rounds, timing.calls)


@torch.no_grad()
def measure(case: Case, seconds: float) -> Row:
    sampling = Sampling(case)
    sampling.check()
    _, height, width = case.size
    whole, middle = sampling.run(), pytorch.Execution(sampling.program, sampling.run())
    calls = {
        OURS: lambda: sampling.draw(BACKEND),
        OURS + GRAPH: captured(lambda: registry.choose(sampling.program, BACKEND).run(sampling.program, whole)),
        FULL: captured(sampling.forward),
        CACHED + GRAPH: captured(lambda: middle.row(height // 2)),
    }
    timings = interleave({name: waited_for(call) for name, call in calls.items()}, seconds=seconds, min_rounds=3)
    timings[FULL] = times(timings[FULL], case.size[0] * height * width)
    timings[CACHED + GRAPH] = times(timings[CACHED + GRAPH], height)
    cached = []
    for _ in range(CACHED_ROUNDS):  # warm from the check
        start = time.perf_counter()
        waited_for(lambda: sampling.draw("torch"))()
        cached.append(time.perf_counter() - start)
    timings[CACHED] = summarise(cached, 1)
    return Row("sampling", str(case), timings, (OURS, OURS + GRAPH), FULL, sampling.work())


def claims_of(case: Case, row: Row) -> list[Claim]:
    taken = row.timings[OURS].median
    promised = "" if case.seconds is None else f" (at most {case.seconds * 1e3:g} ms were promised)"
    pixels = case.size[1] * case.size[2]
    return [
        Claim(f"{case}: the batch takes {taken * 1e3:.4g} ms{promised}; images a second", case.batch / taken, "",
              None if case.seconds is None else case.batch / case.seconds),
        Claim(f"{case}: for each pixel", row.timings[row.best_ours()].median / pixels * 1e6, " µs"),
        Claim(f"{case}: over {FULL}", row.speed_up(FULL), "×", case.over_full),
        Claim(f"{case}: over {CACHED}", row.speed_up(CACHED), "×"),
        Claim(f"{case}: over {CACHED}{GRAPH}", row.speed_up(CACHED + GRAPH), "×", case.over_cached_graph),
    ]  # fmt: skip


def run(seconds: float) -> Report:
    """Measure everything; the ceilings before and after, of which the higher counts."""
    ceilings = measure_gpu_ceilings(torch.float32)
    rows: list[Row] = []
    claims: list[Claim] = []
    for case in CASES:
        print(f"{case} ...", flush=True)
        rows.append(measure(case, seconds))
        claims += claims_of(case, rows[-1])
    return Report(
        benchmark="gpu_sampler",
        title="Sampling on a GPU, float32",
        ceilings=ceilings.highest(measure_gpu_ceilings(torch.float32)),
        rows=tuple(rows),
        claims=tuple(claims),
        settings={"seconds": seconds},
        machine=gpu_machine(),
    )


if __name__ == "__main__":
    command_line(run, "bench.gpu_sampler", seconds=2.0)
