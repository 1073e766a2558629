"""Diagonal BiLSTM on a GPU: ours against the loops of public code, eager, captured in a CUDA graph, and compiled.

    python -m bench.gpu_wavefront_lstm [--compile] [--seconds S] [--json FILE]

torch.compile unrolls the loop's sixty steps, which takes minutes: it is timed only where --compile asks for it.

What is timed is the walk in both directions over gates that are there already, since the product before it is the same
for everybody. Every alternative is checked against float64 (result and all gradients) before it is timed. Times are
those of many calls behind each other with one wait at the end, so a launch that hides behind the one before it counts
as little as in a training loop.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.gpu_timing import command_line, gpu_machine, measure_gpu_ceilings
from bench.core.report import Claim, Report, Row
from bench.core.roofline import Work
from bench.core.timing import Timing, check_equal, interleave
from bench.wavefront_lstm import FORWARD, STEP, cell
from genkernels.ops import diagonal_bilstm

PUBLIC = "Conv1d loop"
FUSED = "one product a step"
COMPILED = f"{FUSED}, torch.compile"
GRAPH = ", CUDA graph"
OURS = ("ours", f"ours{GRAPH}")
TOLERANCE = 0.05  # bfloat16 against float64 over some sixty steps
DEVICE = "cuda"  # replaced in tests
TURN = 0.02  # seconds between two waits for the GPU

Walk = Callable[..., Tensor]  # gates_left, gates_right, weight_left, weight_right -> h
Step = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
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


CASES = (Case(64, 128, 32), Case(16, 64, 28))
COMPILED_CASE = CASES[0]


# --- the alternatives -------------------------------------------------------------------------------------------


def skew(image: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H, H + W - 1]: row r moved r places to the right. The quickest way there is."""
    height, columns = image.shape[2], sum(image.shape[2:]) - 1
    return F.pad(image, (0, height)).flatten(2)[:, :, : height * columns].unflatten(2, (height, columns))


def unskew(skewed: Tensor, width: int) -> Tensor:
    height, columns = skewed.shape[2:]
    return F.pad(skewed.flatten(2), (0, height)).unflatten(2, (height, columns + 1))[:, :, :, :width]


def both(left: Tensor, right: Tensor) -> Tensor:
    """The sum of the two walks: that from the right is turned back, and moved down one row."""
    return left + F.pad(right.flip(3)[:, :, :-1], (0, 0, 1, 0))


def public_loop(left: Tensor, right: Tensor, weight_left: Tensor, weight_right: Tensor) -> Tensor:
    """As public code has it: one direction after the other, a Conv1d of two taps for every column."""
    results = []
    for gates, weight in ((left, weight_left), (right.flip(3), weight_right)):
        skewed = skew(gates)
        state = weight.flip(0).permute(1, 2, 0)  # taps 0, -1 -> [4h, h, (row above, own row)]
        h = c = gates.new_zeros(gates.shape[0], weight.shape[2], gates.shape[2])
        walked = []
        for k in range(skewed.shape[3]):
            h, c = cell(skewed[:, :, :, k] + F.conv1d(F.pad(h, (1, 0)), state), c)
            walked.append(h)
        results.append(unskew(torch.stack(walked, 3), gates.shape[3]))
    return both(*results)


def fused_loop(left: Tensor, right: Tensor, weight_left: Tensor, weight_right: Tensor) -> Tensor:
    """What careful code in PyTorch can do: one batched product a step, for both directions and both taps."""
    batch, _, height, width = left.shape
    skewed = skew(torch.cat([left, right.flip(3)]))  # [2N, 4h, H, columns]
    columns = skewed.permute(3, 0, 2, 1).unflatten(1, (2, -1)).flatten(2, 3).contiguous()  # [columns, 2, N H, 4h]
    matrix = torch.stack([weight_left, weight_right]).permute(0, 1, 3, 2).flatten(1, 2)  # [2, taps h, 4h]
    units = weight_left.shape[2]
    h = c = left.new_zeros(2, batch * height, units)
    walked = []
    for column in columns:
        above = F.pad(h.unflatten(1, (batch, height)), (0, 0, 1, 0))[:, :, :height].flatten(1, 2)
        i, f, g, o = torch.baddbmm(column, torch.cat([h, above], 2), matrix).chunk(4, 2)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        walked.append(h)
    image = torch.stack(walked, 3).unflatten(1, (batch, height)).permute(0, 1, 3, 2, 4)  # [2, N, h, H, columns]
    return both(*unskew(image.flatten(0, 1), width).chunk(2))


WALKS: dict[str, Walk] = {OURS[0]: diagonal_bilstm, PUBLIC: public_loop, FUSED: fused_loop}


class Problem:
    """The tensors of a case, and what an alternative makes of them."""

    def __init__(self, case: Case, dtype: torch.dtype = torch.bfloat16) -> None:
        generator = torch.Generator().manual_seed(0)
        h = case.hidden

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)

        gates, weight = (case.batch, 4 * h, case.size, case.size), (2, 4 * h, h)
        self.inputs = [random(*gates).contiguous(memory_format=torch.channels_last) for _ in range(2)]
        self.inputs += [random(*weight, scale=(2 * h) ** -0.5) for _ in range(2)]
        self.grad = random(case.batch, h, case.size, case.size).contiguous(memory_format=torch.channels_last)

    def calls(self, walk: Walk) -> tuple[Callable[[], Tensor], Step]:
        """(a forward pass, a forward and backward pass that returns h and the gradients)."""
        inputs = [t.detach().requires_grad_() for t in self.inputs]

        def forward() -> Tensor:
            with torch.no_grad():
                return walk(*inputs)

        def step() -> tuple[Tensor, ...]:
            y = walk(*inputs)
            return (y, *torch.autograd.grad(y, inputs, self.grad))

        return forward, step

    def reference(self) -> tuple[Tensor, ...]:
        """h and the gradients of a loop in float64."""
        inputs = [t.detach().double().requires_grad_() for t in self.inputs]
        y = fused_loop(*inputs)
        return (y.detach(), *torch.autograd.grad(y, inputs, self.grad.double()))


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as one CUDA graph, which gives the same tensors every time."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


# --- timing on a GPU --------------------------------------------------------------------------------------------


def timed(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
    """As :func:`bench.core.timing.interleave`, each turn being as many calls as fill TURN, and one wait."""
    repeats = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        repeats[name] = max(1, round(TURN / (time.perf_counter() - start)))

    def turn(name: str) -> Callable[[], None]:
        def run() -> None:
            for _ in range(repeats[name]):
                calls[name]()
            torch.cuda.synchronize()

        return run

    timings = interleave({name: turn(name) for name in calls}, seconds=seconds, min_rounds=11)
    return {
        name: replace(t, median=t.median / n, p20=t.p20 / n, p80=t.p80 / n, calls=t.calls * n)
        for (name, t), n in zip(timings.items(), repeats.values(), strict=True)
    }


# --- all in turn ------------------------------------------------------------------------------------------------


def measure(case: Case, seconds: float, compiled: bool) -> tuple[list[Row], list[Claim]]:
    """Check, then time, every alternative for one case."""
    problem, claims = Problem(case), []
    calls = {name: problem.calls(walk) for name, walk in WALKS.items()}
    if compiled and case == COMPILED_CASE:
        forward, step = calls[COMPILED] = problem.calls(torch.compile(fused_loop, dynamic=False, fullgraph=True))
        start = time.perf_counter()
        forward(), step()
        claims.append(Claim(f"{case}: {COMPILED} compiles for", time.perf_counter() - start, " s"))
    for name, pair in list(calls.items()):
        calls[name + GRAPH] = (captured(pair[0]), captured(pair[1]))
    check_equal({name: step() for name, (_, step) in calls.items()}, problem.reference(), tolerance=TOLERANCE)
    rows = []
    for index, group in enumerate((FORWARD, STEP)):
        row = Row(
            group=group,
            case=str(case),
            timings=timed({name: pair[index] for name, pair in calls.items()}, seconds),
            ours=OURS,
            baseline=PUBLIC,
            work=case.work(backward=group == STEP),
        )
        rows.append(row)
        text, best = f"{case}, {group}:", row.best_other()
        claims.append(Claim(f"{text} per step of the walk", row.timings[OURS[0]].median / case.steps * 1e6, " µs"))
        claims.append(Claim(f"{text} over {PUBLIC}", row.speed_up(PUBLIC), "×"))
        claims.append(Claim(f"{text} over {best}, the quickest other", row.speed_up(best, row.best_ours()), "×"))
    return rows, claims


def run(seconds: float, compiled: bool = False) -> Report:
    """Measure everything; the ceilings before and after, of which the higher counts."""
    ceilings = measure_gpu_ceilings(torch.bfloat16)
    rows: list[Row] = []
    claims: list[Claim] = []
    for case in CASES:
        print(f"{case} ...", flush=True)
        done, said = measure(case, seconds, compiled)
        rows += done
        claims += said
    return Report(
        benchmark="gpu_wavefront_lstm",
        title="Diagonal BiLSTM walks on a GPU, bfloat16",
        ceilings=ceilings.highest(measure_gpu_ceilings(torch.bfloat16)),
        rows=tuple(rows),
        claims=tuple(claims),
        settings={"seconds": seconds, "compiled": compiled},
        machine=gpu_machine(),
    )


if __name__ == "__main__":
    with_compile = "--compile" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--compile"]
    command_line(lambda seconds: run(seconds, with_compile), "bench.gpu_wavefront_lstm", seconds=1.0)
