"""Sampling: ours against full forward passes, row-cropped ones and a cached PyTorch sampler, on the CPU.

    python -m bench.sampler [--quick] [--seconds S] [--json DIR]

prints the tables and the summary, and writes DIR/<machine>/sampler.json.

The measure is one full forward pass of the same batch, the model's own with our kernels: what sampling would cost
if the pixels did not have to wait for each other. "Full forwards" and "row-cropped forwards" (each sub-pixel's forward
pass on the rows down to its own) are not run to the end, which takes minutes: the forward pass is timed, for cropped
ones at a few heights, and multiplied by the number of sub-pixels. Our samples are compared with the cached PyTorch
sampler's, from the same uniforms, before anything is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.core.report import Claim, Report, Row, command_line
from bench.core.roofline import Ceilings, Work, measure_ceilings
from bench.core.timing import MismatchError, Timing, interleave
from bench.core.timing import summarise as summarise_times
from genkernels import sampling
from genkernels.models import CausalAudioNet, GatedPixelCNN, PixelCNN, PixelRNN
from genkernels.sampling.request import check_request

OURS, CACHED, FULL, CROPPED, FORWARD = (
    "ours", "cached PyTorch", "full forwards", "row-cropped forwards", "one forward pass"
)  # fmt: skip
EQUAL_SHARE = 0.999  # of the sub-pixels: once one differs, its image goes on differently
CACHED_ROUNDS = 2  # each takes seconds
HEIGHTS = 4  # at which cropped forward passes are timed


@dataclass(frozen=True)
class Case:
    """A model, a batch, and what was promised: the most forward passes, the least over full and cached sampling."""

    name: str
    make: Callable[[], Any]
    size: tuple[int, int, int]
    batch: int
    passes: float | None = None
    over_full: float | None = None
    over_cached: float | None = None

    def __str__(self) -> str:
        return f"{self.name}, batch {self.batch}"


def _audio() -> Any:
    return CausalAudioNet(num_layers=20, hidden_channels=64)


_GREY = (1, 28, 28)
CASES = (
    Case("PixelCNN 7×64, 28², 256 levels", PixelCNN, _GREY, 1, None, 100, 10),
    Case("PixelCNN 7×64, 28², 256 levels", PixelCNN, _GREY, 16, 2.5, 300),
    Case("PixelCNN 7×64, 28², 256 levels", PixelCNN, _GREY, 256, 2.0),
    Case("GatedPixelCNN 8×64, 32² RGB, 256 levels", lambda: GatedPixelCNN(3, image_size=32), (3, 32, 32), 16, 4.0),
    Case("PixelRNN diagonal 7×16, 28², 2 levels", PixelRNN, _GREY, 16, 5.0),
    Case("CausalAudioNet 20×64, 1000 samples", _audio, (1, 1, 1000), 1, None, None, 20),
)


class Sampling:
    """One case, ready to be timed."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case, self.model = case, case.make().eval()
        shape = (case.batch, *case.size)
        self.uniforms = torch.rand(shape)
        self.table = self.model._scaled(torch.arange(self.model.levels))
        self.scaled = self.table[torch.randint(0, self.model.levels, shape)]

    @torch.no_grad()
    def draw(self, backend: str) -> Tensor:
        request = check_request(
            (self.case.batch, *self.case.size), self.model.levels, torch.device("cpu"), uniforms=self.uniforms,
            given=None, known=None, temperature=1.0, top_k=None, generator=None,
        )  # fmt: skip
        return sampling.sample(self.model, self.model.predict, self.table, request, backend=backend)

    @torch.no_grad()
    def forward(self, rows: int | None = None) -> Tensor:
        """A full forward pass, or one on the first rows."""
        return self.model.predict(self.scaled[:, :, :rows], None)

    @torch.no_grad()
    def work(self) -> Work:
        """The multiply-adds of the program, and every weight and image once."""
        shape = (self.case.batch, *self.case.size)
        program = sampling.compile_program(self.model, self.model.predict, shape, self.table)
        weights = sum(p.numel() for p in self.model.parameters())
        return Work(2 * self.case.batch * program.multiplications(), 4 * (weights + self.uniforms.numel()))


def check_same(ours: Tensor, cached: Tensor) -> None:
    """Raise a MismatchError unless nearly all levels are those that the cached PyTorch sampler draws."""
    share = (ours == cached).float().mean().item()
    if share < EQUAL_SHARE:
        raise MismatchError(f"ours: only {share:.2%} of the levels are those of the cached PyTorch sampler")


def times(timing: Timing, count: float) -> Timing:
    return Timing(timing.median * count, timing.p20 * count, timing.p80 * count, timing.rounds, timing.calls)


def measure(case: Case, seconds: float, min_rounds: int) -> Row:
    sampling = Sampling(case)
    colours, height, width = case.size
    cached: list[float] = []
    if case.batch <= 16:  # beyond, cached PyTorch takes minutes
        for _ in range(1 + CACHED_ROUNDS):
            start = time.perf_counter()
            levels = sampling.draw("torch")
            cached.append(time.perf_counter() - start)
        check_same(sampling.draw("cpu"), levels)
    timings = interleave(
        {OURS: lambda: sampling.draw("cpu"), FORWARD: sampling.forward}, seconds=seconds, min_rounds=min_rounds
    )
    timings[FULL] = times(timings[FORWARD], colours * height * width)
    if height > 1:
        step = height / HEIGHTS
        rows = {str(k): int(step * k + step / 2) + 1 for k in range(HEIGHTS)}
        cropped = interleave(
            {name: lambda count=count: sampling.forward(count) for name, count in rows.items()},
            seconds=seconds / 2, min_rounds=3,
        )  # fmt: skip
        mean = sum(timing.median for timing in cropped.values()) / HEIGHTS
        timings[CROPPED] = times(Timing(mean, mean, mean, 3, HEIGHTS), colours * height * width)
    if cached:
        timings[CACHED] = summarise_times(cached[1:], 1)  # the first one warms up
    return Row("sampling", str(case), timings, (OURS,), FULL, sampling.work())


def summarise(measured: dict[Case, Row]) -> list[Claim]:
    claims = []
    for case, row in measured.items():
        ours, forward = row.timings[OURS].median, row.timings[FORWARD].median
        promised = "" if case.passes is None else f" (at most {case.passes:g} were promised)"
        target = None if case.passes is None else 1 / case.passes
        text = f"{case}: {ours / forward:.2f} forward passes{promised}; a forward pass is"
        claims.append(Claim(text, forward / ours, "× of it", target))
        claims.append(Claim(f"{case}: over full forwards", row.speed_up(FULL), "×", case.over_full))
        if CACHED in row.timings:
            claims.append(Claim(f"{case}: over cached PyTorch", row.speed_up(CACHED), "×", case.over_cached))
        many = case.batch * case.size[1] * case.size[2] if case.size[1] == 1 else case.batch
        unit = " samples/s" if case.size[1] == 1 else " images/s"
        claims.append(Claim(f"{case}: drawn in a second", many / ours, unit))
    return claims


def run(quick: bool, seconds: float) -> Report:
    seconds, min_rounds = (min(seconds, 0.5), 2) if quick else (seconds, 5)
    ceilings: Ceilings = measure_ceilings()
    measured = {}
    for case in CASES:
        print(f"{case} ...", flush=True)
        measured[case] = measure(case, seconds, min_rounds)
    ceilings = ceilings.highest(measure_ceilings())
    return Report(
        benchmark="sampler",
        title="Sampling, float32",
        ceilings=ceilings,
        rows=tuple(measured.values()),
        claims=tuple(summarise(measured)),
        settings={"quick": quick, "seconds": seconds, "min_rounds": min_rounds},
    )


if __name__ == "__main__":
    command_line(run, "bench.sampler", seconds=5.0)
