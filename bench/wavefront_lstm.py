"""Row LSTM and one direction of the Diagonal LSTM: ours against the loop of public code, eager and compiled.

    python -m bench.wavefront_lstm [--quick] [--seconds S] [--json DIR]

times all alternatives in turn, prints the tables and the summary, and writes DIR/<machine>/wavefront_lstm.json. What
torch.compile is given is one step of the loop, and the summary says for how long it compiles. Given the whole loop it
unrolls some fifty steps, forward and backward, and was not done after 5.8 minutes on two cores.

    pytest bench/wavefront_lstm.py --benchmark-only [-k NAME]

runs the same callables under pytest-benchmark.

A case is a layer on h channels: input-to-state convolution (1x1, or masked 1x3 for rows) to 4h, and the walk. Every
alternative is checked against float64 (output and all gradients) before it is timed. Peak memory is what one step
adds to a fresh process.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.report import Claim, Report, Row, command_line
from bench.core.roofline import Ceilings, Work, measure_ceilings
from bench.core.timing import check_equal, interleave
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
    """One layer: what is walked, on how much, and how many times quicker than eager a step is to be."""

    front: str
    batch: int
    hidden: int
    size: int
    target: float

    def __str__(self) -> str:
        return f"{self.front}, {self.batch}×{self.hidden}, {self.size}²"

    @property
    def eager(self) -> str:
        return EAGER if self.front == "diagonal" else EAGER_ROW

    @property
    def steps(self) -> int:
        return self.size if self.front == "row" else 2 * self.size - 1

    def work(self, *, backward: bool) -> Work:
        """Multiply-adds of the live taps, of input and state, at the real pixels; each tensor read or written once.

        Backward does the forward's arithmetic twice more: for what was read, and for the weights.
        """
        pixels, h = self.batch * self.size**2, self.hidden
        taps = (2 + 3) if self.front == "row" else (1 + 2)  # of the 1x3 mask B two are live
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
Step = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # gates, h, c, Conv1d weight -> h, c


def cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def skewed_step(gates: Tensor, h: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return cell(gates + F.conv1d(F.pad(h, (1, 0)), state), c)


def row_step(gates: Tensor, h: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return cell(gates + F.conv1d(h, state, padding=1), c)


def skewed_loop(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, step: Step = skewed_step) -> Tensor:
    """As public code has it: skew, walk over the columns with a Conv1d of two taps, stack, unskew.

    Both skews are one padding and a change of shape, the quickest way there is.
    """
    batch, _, height, width = x.shape
    columns = height + width - 1
    gates = F.conv2d(x, weight, bias)
    flat = F.pad(gates, (0, height)).flatten(2)[:, :, : height * columns]
    skewed = flat.unflatten(2, (height, columns))  # row r moved r places to the right
    h = c = x.new_zeros(batch, state.shape[1], height)
    walked = []
    for k in range(columns):
        h, c = step(skewed[:, :, :, k], h, c, state)
        walked.append(h)
    flat = F.pad(torch.stack(walked, 3).flatten(2), (0, height))
    return flat.unflatten(2, (height, columns + 1))[:, :, :, :width]


def row_loop(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, step: Step = row_step) -> Tensor:
    """As public code has it: a masked 1x3 convolution, then a Conv1d of three taps for every row."""
    mask = weight.new_tensor([1.0, 1.0, 0.0])
    gates = F.conv2d(x, weight * mask, bias, padding=(0, 1))
    h = c = x.new_zeros(x.shape[0], state.shape[1], x.shape[3])
    rows = []
    for k in range(x.shape[2]):
        h, c = step(gates[:, :, k], h, c, state)
        rows.append(h)
    return torch.stack(rows, 2)


def ours(front: str, checkpoint: bool) -> Layer:
    def layer(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> Tensor:
        taps = state.permute(2, 0, 1)  # [4h, h, k] -> [k, 4h, h]
        if front == "row":
            return ops.row_lstm_layer(x, weight, bias, taps, checkpoint=checkpoint)
        return ops.diagonal_lstm_layer(x, weight, bias, taps, taps=(-1, 0), checkpoint=checkpoint)

    return layer


class Problem:
    """The tensors of a case, and every alternative as a pair of calls."""

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        h, taps = case.hidden, 3 if case.front == "row" else 2
        width = 3 if case.front == "row" else 1

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
            return ours(self.case.front, "checkpoint" in name)
        loop, step = (skewed_loop, skewed_step) if self.case.front == "diagonal" else (row_loop, row_step)
        return partial(loop, step=torch.compile(step, dynamic=False, fullgraph=True)) if name == COMPILED else loop

    def calls(self, name: str) -> tuple[Callable[[], Tensor], Callable[[], tuple[Tensor, ...]]]:
        """(a forward pass, a forward and backward pass that returns h and the gradients)."""
        layer = self.layer(name)
        layout = torch.channels_last if "channels_last" in name else torch.contiguous_format
        x = self.x.contiguous(memory_format=layout).requires_grad_()
        grad = self.grad.contiguous(memory_format=layout)
        inputs = [x, *self.parameters]

        def forward() -> Tensor:
            with torch.no_grad():
                return layer(x, *self.parameters)

        def step() -> tuple[Tensor, ...]:
            y = layer(x, *self.parameters)
            return (y, *torch.autograd.grad(y, inputs, grad))

        return forward, step

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
    Problem(Case(case.front, 2, 8, 4, 0)).calls(name)[1]()
    step = Problem(case).calls(name)[1]
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is in use
    before = _status("VmHWM")
    step()
    print(_status("VmHWM") - before)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


# --- all in turn ------------------------------------------------------------------------------------------------


def measure(case: Case, seconds: float, min_rounds: int) -> tuple[list[Row], Claim]:
    """Check, then time, every alternative for one case; and how long torch.compile takes."""
    problem = Problem(case)
    torch.compiler.reset()  # else every case counts as a recompilation of the same step
    calls = {name: problem.calls(name) for name in names(case)}
    start = time.perf_counter()
    with torch._inductor.config.patch(force_disable_caches=True):  # of earlier runs
        for call in calls[COMPILED]:
            call()
    compiling = Claim(f"{case}: {COMPILED} compiles for", time.perf_counter() - start, " s")
    check_equal({name: step() for name, (_, step) in calls.items()}, problem.reference(), tolerance=TOLERANCE)
    rows = [
        Row(
            group=group,
            case=str(case),
            timings=interleave(
                {name: pair[index] for name, pair in calls.items() if group == STEP or "checkpoint" not in name},
                seconds=seconds,
                min_rounds=min_rounds,
            ),
            ours=OURS if group == STEP else OURS[:2],
            baseline=case.eager,
            work=case.work(backward=group == STEP),
        )
        for index, group in enumerate((FORWARD, STEP))
    ]
    return rows, compiling


def summarise(case: Case, rows: list[Row], ceilings: Ceilings) -> list[Claim]:
    """Speed-ups, share of peak, µs per step of the walk, and peak memory of one case."""
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
        claims.append(Claim(f"{text} per step of the walk", row.timings[OURS[0]].median / case.steps * 1e6, " µs"))
    memory = {name: peak_memory(case, name) for name in (*OURS, case.eager)}
    text = f"{case}, {STEP}: peak memory of {case.eager} ({memory[case.eager] / 1e6:.0f} MB) over"
    for name in (OURS[0], OURS[2]):
        goal = MEMORY_TARGET if name == OURS[0] else None
        claims.append(
            Claim(f"{text} {name} ({memory[name] / 1e6:.0f} MB)", memory[case.eager] / max(memory[name], 1), "×", goal)
        )
    return claims


def run(quick: bool, seconds: float) -> Report:
    """Measure everything; the ceilings before and after, of which the higher counts."""
    seconds, min_rounds = (min(seconds, 0.5), 3) if quick else (seconds, 11)
    ceilings = measure_ceilings()
    measured: dict[Case, list[Row]] = {}
    compiling: list[Claim] = []
    for case in CASES:
        print(f"{case} ...", flush=True)
        measured[case], claim = measure(case, seconds, min_rounds)
        compiling.append(claim)
    ceilings = ceilings.highest(measure_ceilings())
    claims = [claim for case, rows in measured.items() for claim in summarise(case, rows, ceilings)]
    return Report(
        benchmark="wavefront_lstm",
        title="Row LSTM and Diagonal LSTM layers, float32",
        ceilings=ceilings,
        rows=tuple(row for rows in measured.values() for row in rows),
        claims=(*claims, *compiling),
        settings={"quick": quick, "seconds": seconds, "min_rounds": min_rounds},
    )


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
    command_line(run, "bench.wavefront_lstm", seconds=10.0)
