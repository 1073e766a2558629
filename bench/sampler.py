"""Sampling: ours against full forward passes, row-cropped ones and a cached PyTorch sampler, in float32.

    python -m bench.sampler [--device cpu|cuda] [--quick] [--seconds S] [--json PLACE]

prints the tables and the summary, and writes sampler.json or gpu_sampler.json.

"Full forwards" is one forward pass of the whole batch, with our kernels, for each sub-pixel. It is not run to the end,
which takes minutes: one pass is timed and multiplied by the number of sub-pixels. On the CPU "row-cropped forwards"
(each sub-pixel's forward pass on the rows down to its own) are timed at a few heights likewise, and the measure is one
full forward pass: what sampling would cost if the pixels did not have to wait for each other. "Cached PyTorch" runs the
same sampling program as ours in plain PyTorch.

On a GPU a forward pass is captured in a CUDA graph. The graph of "cached PyTorch" holds one row in the middle of the
image, whose time is multiplied by the number of rows, since a graph of a whole image would have some hundred thousand
nodes.

Before anything is timed our samples are compared with the cached PyTorch sampler's, from the same uniforms, and on a
GPU our logits on given images with those of a float64 forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.core.checks import MismatchError, check_as_exact
from bench.core.gpu_timing import captured
from bench.core.report import Claim, Report, Row
from bench.core.roofline import Work
from bench.core.session import CPU, Budget, Device, Session, command_line, gpu
from genkernels import sampling
from genkernels.models import CausalAudioNet, GatedPixelCNN, PixelCNN, PixelRNN
from genkernels.sampling.executors import pytorch, registry
from genkernels.sampling.executors.run_arguments import Run
from genkernels.sampling.request import Request, check_request
from genkernels.timing import Timing, interleave, summarise

OURS, CACHED, FULL, CROPPED, FORWARD = (
    "ours", "cached PyTorch", "full forwards", "row-cropped forwards", "one forward pass"
)  # fmt: skip
GRAPH = ", CUDA graph"
GPU_FULL = FULL + GRAPH
EQUAL_SHARE = 0.999  # of the sub-pixels: once one differs, its image goes on differently
# Of the images on a GPU, the least that must be the cached PyTorch sampler's: where a uniform falls within rounding of
# a level's boundary, the rest of an image goes on differently.
EQUAL_IMAGES = 0.9
CACHED_ROUNDS = 2  # each takes seconds
HEIGHTS = 4  # at which cropped forward passes are timed


@dataclass(frozen=True)
class Case:
    """A model, a batch, and what was promised.

    Attributes:
        passes, seconds: the most forward passes, the most seconds, that a batch takes.
        over_full, over_cached: the least speed-up over full forward passes and over cached sampling; on a GPU both
            are CUDA graphs.
    """

    name: str
    make: Callable[[], Any]
    size: tuple[int, int, int]
    batch: int
    passes: float | None = None
    seconds: float | None = None
    over_full: float | None = None
    over_cached: float | None = None

    def __str__(self) -> str:
        return f"{self.name}, batch {self.batch}"


_GREY, _COLOUR = (1, 28, 28), (3, 32, 32)
_PIXELCNN = ("PixelCNN 7×64, 28², 256 levels", PixelCNN, _GREY)
_GATED = ("GatedPixelCNN 8×64, 32² RGB, 256 levels", lambda: GatedPixelCNN(3, image_size=32), _COLOUR)
_RNN = ("PixelRNN diagonal 7×16, 28², 2 levels", PixelRNN, _GREY)
_AUDIO = (
    "CausalAudioNet 20×64, 1000 samples", lambda: CausalAudioNet(num_layers=20, hidden_channels=64), (1, 1, 1000)
)  # fmt: skip
CASES = {
    "cpu": (
        Case(*_PIXELCNN, 1, over_full=100, over_cached=10),
        Case(*_PIXELCNN, 16, passes=2.5, over_full=300),
        Case(*_PIXELCNN, 256, passes=2.0),
        Case(*_GATED, 16, passes=4.0),
        Case(*_RNN, 16, passes=5.0),
        Case(*_AUDIO, 1, over_cached=20),
    ),
    "cuda": (
        Case(*_PIXELCNN, 128, seconds=0.06, over_full=50, over_cached=10),
        Case(*_GATED, 128, seconds=1.0),
    ),
}


class Sampling:
    """One case, ready to be timed; ``backend`` is that of ours."""

    def __init__(self, case: Case, device: Device = CPU, backend: str = "cpu") -> None:
        torch.manual_seed(0)
        self.case, self.device, self.backend = case, device, backend
        self.model = case.make().eval().to(device.name)
        self.shape = (case.batch, *case.size)
        self.uniforms = torch.rand(self.shape)
        self.table = self.model._scaled(torch.arange(self.model.levels, device=device.name))
        self.given = torch.randint(0, self.model.levels, self.shape).to(device.name, torch.uint8)
        self.scaled = self.table[self.given.long()]
        with torch.no_grad():
            self.program = sampling.compile_program(self.model, self.model.predict, self.shape, self.table)

    def request(self) -> Request:
        return check_request(
            self.shape, self.model.levels, torch.device(self.device.name), uniforms=self.uniforms, given=None,
            known=None, temperature=1.0, top_k=None, generator=None,
        )  # fmt: skip

    def run(self) -> Run:
        return registry.run_of(self.request(), slice(0, self.case.batch), lambda y: None)

    @torch.no_grad()
    def draw(self, backend: str | None = None) -> Tensor:
        """As a user has it drawn, from the model to the images."""
        backend = backend or self.backend
        return sampling.sample(self.model, self.model.predict, self.table, self.request(), backend=backend)

    @torch.no_grad()
    def forward(self, rows: int | None = None) -> Tensor:
        """A full forward pass, or one on the first rows."""
        return self.model.predict(self.scaled[:, :, :rows], None)

    def check_on_gpu(self) -> None:
        """Raise a MismatchError unless logits and samples are those of the alternatives."""
        few = self.given[:2]
        with torch.no_grad():
            results = {
                OURS: [sampling.teacher_forced(self.program, few, self.backend)],
                CACHED: [sampling.teacher_forced(self.program, few, "torch")],
            }
            exact = self.model.double().predict(self.table.double()[few.long()], None)
            self.model.float()
        check_as_exact(results, [exact], peer=CACHED, ours=(OURS,))
        same = (self.draw() == self.draw("torch")).flatten(1).all(1).float().mean().item()
        if same < EQUAL_IMAGES:
            raise MismatchError(f"{OURS}: only {same:.1%} of the images are those of the cached PyTorch sampler")

    def work(self) -> Work:
        """The multiply-adds of the program, and every weight and image once."""
        weights = sum(p.numel() for p in self.model.parameters())
        return Work(2 * self.case.batch * self.program.multiplications(), 4 * (weights + self.uniforms.numel()))


def check_same(ours: Tensor, cached: Tensor) -> None:
    """Raise a MismatchError unless nearly all levels are those that the cached PyTorch sampler draws."""
    share = (ours == cached).float().mean().item()
    if share < EQUAL_SHARE:
        raise MismatchError(f"ours: only {share:.2%} of the levels are those of the cached PyTorch sampler")


def measure(session: Session, case: Case) -> list[Row]:
    """Check, then time, one case on the CPU."""
    sampling = Sampling(case)
    colours, height, width = case.size
    cached: list[float] = []
    if case.batch <= 16:  # beyond, cached PyTorch takes minutes
        for _ in range(1 + CACHED_ROUNDS):
            start = time.perf_counter()
            levels = sampling.draw("torch")
            cached.append(time.perf_counter() - start)
        check_same(sampling.draw(), levels)
    timings = session.time({OURS: sampling.draw, FORWARD: sampling.forward})
    timings[FULL] = timings[FORWARD].times(colours * height * width)
    if height > 1:
        step = height / HEIGHTS
        rows = {str(k): int(step * k + step / 2) + 1 for k in range(HEIGHTS)}
        cropped = session.time(
            {name: lambda count=count: sampling.forward(count) for name, count in rows.items()},
            seconds=session.seconds / 2, min_rounds=3,
        )  # fmt: skip
        mean = sum(timing.median for timing in cropped.values()) / HEIGHTS
        timings[CROPPED] = Timing(mean, mean, mean, 3, HEIGHTS).times(colours * height * width)
    if cached:
        timings[CACHED] = summarise(cached[1:], 1)  # the first one warms up
    return [Row("sampling", str(case), timings, (OURS,), FULL, sampling.work())]


def claims_of(measured: dict[Case, list[Row]]) -> list[Claim]:
    claims = []
    for case, (row,) in measured.items():
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


# --- on a GPU -------------------------------------------------------------------------------------------------------


def waited_for(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def interleave_waiting(calls: dict[str, Callable[[], object]], **options: Any) -> dict[str, Timing]:
    """As :func:`genkernels.timing.interleave`, with a wait for the GPU after each call."""
    return interleave({name: waited_for(call) for name, call in calls.items()}, **options)


@torch.no_grad()
def measure_on_gpu(session: Session, case: Case, backend: str = "cuda") -> list[Row]:
    """Check, then time, one case on a GPU."""
    sampling = Sampling(case, session.device, backend)
    sampling.check_on_gpu()
    _, height, width = case.size
    whole, middle = sampling.run(), pytorch.Execution(sampling.program, sampling.run())
    timings = session.time({
        OURS: sampling.draw,
        OURS + GRAPH: captured(lambda: registry.choose(sampling.program, backend).run(sampling.program, whole)),
        GPU_FULL: captured(sampling.forward),
        CACHED + GRAPH: captured(lambda: middle.row(height // 2)),
    })  # fmt: skip
    timings[GPU_FULL] = timings[GPU_FULL].times(case.size[0] * height * width)
    timings[CACHED + GRAPH] = timings[CACHED + GRAPH].times(height)
    cached = []
    for _ in range(CACHED_ROUNDS):  # warm from the check
        start = time.perf_counter()
        waited_for(lambda: sampling.draw("torch"))()
        cached.append(time.perf_counter() - start)
    timings[CACHED] = summarise(cached, 1)
    return [Row("sampling", str(case), timings, (OURS, OURS + GRAPH), GPU_FULL, sampling.work())]


def gpu_claims_of(case: Case, row: Row) -> list[Claim]:
    taken = row.timings[OURS].median
    promised = "" if case.seconds is None else f" (at most {case.seconds * 1e3:g} ms were promised)"
    pixels = case.size[1] * case.size[2]
    return [
        Claim(f"{case}: the batch takes {taken * 1e3:.4g} ms{promised}; images a second", case.batch / taken, "",
              None if case.seconds is None else case.batch / case.seconds),
        Claim(f"{case}: for each pixel", row.timings[row.best_ours()].median / pixels * 1e6, " µs"),
        Claim(f"{case}: over {GPU_FULL}", row.speed_up(GPU_FULL), "×", case.over_full),
        Claim(f"{case}: over {CACHED}", row.speed_up(CACHED), "×"),
        Claim(f"{case}: over {CACHED}{GRAPH}", row.speed_up(CACHED + GRAPH), "×", case.over_cached),
    ]  # fmt: skip


def run(session: Session, cases: Sequence[Case] | None = None) -> Report:
    """Measure everything."""
    if not session.device.is_gpu:
        measured = session.over(cases or CASES["cpu"], measure)
        rows = [row for (row,) in measured.values()]
        return session.report("sampler", "Sampling, float32", rows, claims_of(measured))
    measured = session.over(cases or CASES["cuda"], measure_on_gpu)
    claims = [claim for case, (row,) in measured.items() for claim in gpu_claims_of(case, row)]
    return session.report("sampler", "Sampling on a GPU, float32", [row for (row,) in measured.values()], claims)


if __name__ == "__main__":
    devices = {
        "cpu": (CPU, Budget(5.0, rounds=5, quick_rounds=2)),
        "cuda": (gpu(torch.float32, interleave_waiting), Budget(2.0, rounds=3)),
    }
    command_line(run, "bench.sampler", devices)
