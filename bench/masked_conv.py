"""Masked convolution: ours against every alternative a user has, forward and forward + backward.

    python -m bench.masked_conv [--device cpu|cuda] [--quick] [--seconds S] [--json PLACE]

times all alternatives in turn, prints the tables and the summary, and writes masked_conv.json or gpu_masked_conv.json.

    pytest bench/masked_conv.py --benchmark-only [-k 'k7A and cropped']

runs the same callables on the CPU under pytest-benchmark, one group per shape and pass; the alternatives come one after
the other there, so a speed-up to quote is taken from the first form.

Every case is checked against float64 (output and all gradients) before it is timed. A model's first layer, whose input
is an image, is timed without the gradient of that image, which nobody needs, and on the CPU again with it. A GPU
computes in bfloat16, its calls are CUDA graphs, and L2 is flushed before each. The floor counts live taps alone, and
under a gate its result and not the features before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from bench.core.alternatives import COMPILED, LAST, OURS, is_ours
from bench.core.checks import check_as_exact, check_equal
from bench.core.gpu_timing import L2_FLUSHED
from bench.core.report import Claim, Report, Row, geometric_mean
from bench.core.roofline import Ceilings, Work
from bench.core.session import CPU, Budget, Device, Session, command_line, gpu
from bench.masked_conv_baselines import (
    BUILDERS,
    EAGER,
    Prepared,
    Problem,
    masked_conv_work,
    names_for,
    prepare,
    random_problem,
)
from genkernels.ops.masked_conv.mask import MaskSpec

FORWARD = "forward"
STEP = "forward + backward"
STEP_OF_X = "forward + backward with the gradient of the image"
DEEP = 64  # channels from which on the arithmetic, and no longer memory, is the limit
TARGETS = {FORWARD: (1.6, 1.2), STEP: (1.8, 1.3)}  # over eager, over the best alternative
PEAK_TARGET = 0.8
GPU_NAMES = tuple(
    name + layout
    for name in (OURS, EAGER, COMPILED, "pre-masked", "cropped, padded", "cropped, cut")
    for layout in (LAST, "")
)


@dataclass(frozen=True)
class Shape:
    batch: int
    in_channels: int
    out_channels: int
    size: int
    kernel: int
    mask_type: str
    channel_groups: int = 1
    activation: str | None = None
    target: float | None = None  # on a GPU, times as fast as the best alternative

    def __str__(self) -> str:
        gate = self.activation == "gate"
        outputs = f"2×{self.out_channels // 2}" if gate else f"{self.out_channels}"
        colours = f", {self.channel_groups} colours" if self.channel_groups > 1 else ""
        kernel = f"{self.kernel}×{self.kernel} {self.mask_type}"
        return f"{self.batch}×{self.in_channels}→{outputs}, {self.size}², {kernel}{', gate' if gate else ''}{colours}"

    @property
    def id(self) -> str:
        """For ``pytest -k``, which takes no other characters."""
        return f"n{self.batch}_c{self.in_channels}to{self.out_channels}_k{self.kernel}{self.mask_type}"

    @property
    def spec(self) -> MaskSpec:
        kernel = (self.kernel, self.kernel)
        return MaskSpec(self.out_channels, self.in_channels, kernel, self.mask_type, self.channel_groups, "blocks")

    @property
    def is_first_layer(self) -> bool:
        """Its input is an image, which needs no gradient."""
        return self.in_channels <= 3

    def problem(self, input_grad: bool, device: Device = CPU) -> Problem:
        return random_problem(
            self.spec, self.batch, self.size, self.size, activation=self.activation, input_grad=input_grad,
            device=device.name, dtype=device.dtype,
        )  # fmt: skip

    def work(self, problem: Problem, backward: bool) -> Work:
        work = masked_conv_work(
            self.spec, self.batch, self.size, self.size, backward=backward, input_grad=problem.input_grad
        )
        numbers = work.bytes // 4
        if self.activation == "gate":  # y and its gradient are half of what they are without
            numbers -= problem.grad_output.numel() * (1 + backward)
        return Work(work.flops, numbers * problem.x.dtype.itemsize)


SHAPES = {
    "cpu": (
        Shape(16, 1, 128, 28, 7, "A"),
        Shape(16, 64, 64, 28, 3, "B"),
        Shape(16, 128, 128, 28, 3, "B"),
        Shape(16, 3, 128, 32, 7, "A"),
        Shape(16, 128, 256, 32, 3, "B"),
        Shape(64, 64, 64, 28, 7, "B"),
        Shape(1, 128, 128, 28, 3, "B"),
    ),
    "cuda": (
        Shape(64, 128, 256, 32, 3, "B", activation="relu", target=1.3),
        Shape(64, 128, 256, 32, 3, "B", activation="gate", target=2.0),
        Shape(64, 3, 128, 32, 7, "A", channel_groups=3, activation="relu"),
    ),
}


def passes(shape: Shape, device: Device = CPU) -> dict[bool, tuple[str, ...]]:
    """The passes to time, by whether the gradient of x is owed."""
    if not shape.is_first_layer:
        return {True: (FORWARD, STEP)}
    return {False: (FORWARD, STEP)} if device.is_gpu else {False: (FORWARD, STEP), True: (STEP_OF_X,)}


# --- all in turn ------------------------------------------------------------------------------------------


def checked(session: Session, shape: Shape, problem: Problem) -> dict[str, Prepared]:
    """The alternatives that run here, each of which is right."""
    reference = problem.reference()
    gate = problem.activation == "gate"
    eager = BUILDERS[EAGER](problem).results() if gate else ()
    # Whole numbers: sums are exact in float32, so all that is left is the rounding of the results.
    tolerance = 2.0**-8 if session.device.is_gpu else 1e-5

    def make(name: str) -> Prepared:
        alternative = BUILDERS[name](problem)
        if gate:  # which rounds: each may be twice as far from float64 as eager PyTorch
            check_as_exact({EAGER: eager, name: alternative.results()}, reference, peer=EAGER, ours=[name])
        else:
            check_equal({name: alternative.results()}, reference, tolerance=tolerance)
        return alternative

    torch.compiler.reset()  # else every problem counts as a recompilation, and dynamo stops at the eighth
    return session.build(GPU_NAMES if session.device.is_gpu else names_for(shape.spec), make, shape)


def measure(session: Session, shape: Shape) -> list[Row]:
    """Check, then time, every alternative for one shape."""
    rows = []
    for input_grad, groups in passes(shape, session.device).items():
        problem = shape.problem(input_grad, session.device)
        prepared = checked(session, shape, problem)
        for group in groups:
            calls = {name: each.forward if group == FORWARD else each.step for name, each in prepared.items()}
            rows.append(
                Row(
                    group=group,
                    case=str(shape),
                    timings=session.time(calls),
                    ours=tuple(name for name in prepared if is_ours(name)),
                    baseline=EAGER + LAST if session.device.is_gpu else EAGER,
                    work=shape.work(problem, group != FORWARD),
                )
            )
    return rows


def summarise(measured: dict[Shape, list[Row]], ceilings: Ceilings) -> list[Claim]:
    """Speed-ups for the contiguous and the better layout of ours, worst shapes, shares of peak."""
    claims = []
    for group, (over_eager, over_best) in TARGETS.items():
        chosen = {shape: row for shape, rows in measured.items() for row in rows if row.group == group}
        for label in ("ours, contiguous", "ours, better layout"):
            eager, best = {}, {}
            for shape, row in chosen.items():
                name = row.ours[0] if label == "ours, contiguous" else row.best_ours()
                eager[shape] = row.speed_up(row.baseline, name)
                best[shape] = row.speed_up(row.best_other(), name)
            worst = min(best, key=best.__getitem__)
            text, none_slower = f"{group}: {label}, over", 1.0 if group == FORWARD else None
            claims += [
                Claim(f"{text} {EAGER}, geometric mean", geometric_mean(eager.values()), "×", over_eager),
                Claim(f"{text} the best, geometric mean", geometric_mean(best.values()), "×", over_best),
                Claim(f"{text} the best, worst shape ({worst})", best[worst], "×", none_slower),
            ]
        shares = {
            shape: ceilings.share_of_peak(row.work, row.timings[row.best_ours()].median)
            for shape, row in chosen.items()
            if shape.in_channels >= DEEP and row.work is not None
        }
        lowest = min(shares, key=shares.__getitem__)
        text = f"{group}: share of peak on live taps where C ≥ {DEEP}"
        target = PEAK_TARGET if group == FORWARD else None
        claims += [
            Claim(f"{text}, geometric mean", geometric_mean(shares.values()), "%", target),
            Claim(f"{text}, lowest ({lowest})", shares[lowest], "%", target),
        ]
    return claims


def gpu_claims(measured: dict[Shape, list[Row]]) -> list[Claim]:
    return [
        Claim(f"{row.case}, {row.group}: over the best alternative", row.speed_up(row.best_other()), "×", shape.target)
        for shape, rows in measured.items()
        if shape.target is not None
        for row in rows
    ]


def run(session: Session, shapes: Sequence[Shape] | None = None) -> Report:
    """Measure everything."""
    on_gpu = session.device.is_gpu
    measured = session.over(shapes or SHAPES["cuda" if on_gpu else "cpu"], measure)
    assert session.ceilings is not None
    claims = gpu_claims(measured) if on_gpu else summarise(measured, session.ceilings)
    rows = [row for rows in measured.values() for row in rows]
    if on_gpu:
        return session.report("masked_conv", "Masked convolution, bfloat16", rows, claims, l2=L2_FLUSHED)
    return session.report("masked_conv", "Masked convolution, float32", rows, claims)


# --- pytest-benchmark ----

CASES = [pytest.param(s, name, id=f"{s.id}-{name}") for s in SHAPES["cpu"] for name in names_for(s.spec)]


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_forward(benchmark: Any, shape: Shape, name: str) -> None:
    _bench(benchmark, shape, name, FORWARD, input_grad=False)


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_forward_and_backward(benchmark: Any, shape: Shape, name: str) -> None:
    _bench(benchmark, shape, name, STEP, input_grad=not shape.is_first_layer)


def _bench(benchmark: Any, shape: Shape, name: str, group: str, *, input_grad: bool) -> None:
    problem = shape.problem(input_grad)
    prepared = prepare(problem, [name])[name]
    check_equal({name: prepared.results()}, problem.reference())
    benchmark.group = f"{shape}, {group}"
    benchmark(prepared.forward if group == FORWARD else prepared.step)


if __name__ == "__main__":
    devices = {"cpu": (CPU, Budget(10.0)), "cuda": (gpu(torch.bfloat16), Budget(1.0))}
    command_line(run, "bench.masked_conv", devices)
