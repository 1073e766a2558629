"""Masked convolution: ours against every alternative a user has, forward and forward + backward, on the CPU.

    python -m bench.masked_conv [--quick] [--seconds S] [--json DIR]

times all alternatives in turn, prints the tables and the summary, and writes DIR/<machine>/masked_conv.json.

    pytest bench/masked_conv.py --benchmark-only [-k 'k7A and cropped']

runs the same callables under pytest-benchmark, one group per shape and pass; the alternatives come one after
the other there, so a speed-up to quote is taken from the first form.

Every case is checked against float64 (output and all gradients) before it is timed. A model's first layer,
whose input is an image, is timed without the gradient of that image, which nobody needs, and again with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from bench.core.report import Claim, Report, Row, command_line
from bench.core.roofline import Ceilings, measure_ceilings
from bench.core.timing import check_equal, geometric_mean, interleave
from bench.masked_conv_baselines import EAGER, Problem, is_ours, masked_conv_work, names_for, prepare, random_problem
from genkernels.ops.masked_conv.mask import MaskSpec

FORWARD = "forward"
STEP = "forward + backward"
STEP_OF_X = "forward + backward with the gradient of the image"
DEEP = 64  # channels from which on the arithmetic, and no longer memory, is the limit
TARGETS = {FORWARD: (1.6, 1.2), STEP: (1.8, 1.3)}  # over eager, over the best alternative
PEAK_TARGET = 0.8


@dataclass(frozen=True)
class Shape:
    batch: int
    in_channels: int
    out_channels: int
    size: int
    kernel: int
    mask_type: str

    def __str__(self) -> str:
        return (
            f"{self.batch}×{self.in_channels}→{self.out_channels}, {self.size}², "
            f"{self.kernel}×{self.kernel} {self.mask_type}"
        )

    @property
    def id(self) -> str:
        """For ``pytest -k``, which takes no other characters."""
        return f"n{self.batch}_c{self.in_channels}to{self.out_channels}_k{self.kernel}{self.mask_type}"

    @property
    def spec(self) -> MaskSpec:
        kernel = (self.kernel, self.kernel)
        return MaskSpec(self.out_channels, self.in_channels, kernel, self.mask_type, 1, "blocks")

    @property
    def is_first_layer(self) -> bool:
        """Its input is an image, which needs no gradient."""
        return self.in_channels <= 3

    def problem(self, input_grad: bool) -> Problem:
        return random_problem(self.spec, self.batch, self.size, self.size, input_grad=input_grad)


SHAPES = (
    Shape(16, 1, 128, 28, 7, "A"),
    Shape(16, 64, 64, 28, 3, "B"),
    Shape(16, 128, 128, 28, 3, "B"),
    Shape(16, 3, 128, 32, 7, "A"),
    Shape(16, 128, 256, 32, 3, "B"),
    Shape(64, 64, 64, 28, 7, "B"),
    Shape(1, 128, 128, 28, 3, "B"),
)


def passes(shape: Shape) -> dict[str, bool]:
    """The passes to time, each with whether the gradient of x is owed."""
    if shape.is_first_layer:
        return {FORWARD: False, STEP: False, STEP_OF_X: True}
    return {FORWARD: True, STEP: True}


# --- all in turn ------------------------------------------------------------------------------------------


def measure(shape: Shape, seconds: float, min_rounds: int) -> list[Row]:
    """Check, then time, every alternative for one shape."""
    rows = []
    for group, input_grad in passes(shape).items():
        problem = shape.problem(input_grad)
        prepared = prepare(problem)
        check_equal({name: each.results() for name, each in prepared.items()}, problem.reference())
        calls = {name: each.forward if group == FORWARD else each.step for name, each in prepared.items()}
        work = masked_conv_work(
            shape.spec, shape.batch, shape.size, shape.size, backward=group != FORWARD, input_grad=input_grad
        )
        rows.append(
            Row(
                group=group,
                case=str(shape),
                timings=interleave(calls, seconds=seconds, min_rounds=min_rounds),
                ours=tuple(name for name in prepared if is_ours(name)),
                baseline=EAGER,
                work=work,
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


def run(quick: bool, seconds: float) -> Report:
    """Measure everything; the ceilings before and after, of which the higher counts."""
    seconds, min_rounds = (min(seconds, 0.5), 3) if quick else (seconds, 11)
    ceilings = measure_ceilings()
    measured = {}
    for shape in SHAPES:
        print(f"{shape} ...", flush=True)
        measured[shape] = measure(shape, seconds, min_rounds)
    ceilings = ceilings.highest(measure_ceilings())
    return Report(
        benchmark="masked_conv",
        title="Masked convolution, float32",
        ceilings=ceilings,
        rows=tuple(row for rows in measured.values() for row in rows),
        claims=tuple(summarise(measured, ceilings)),
        settings={"quick": quick, "seconds": seconds, "min_rounds": min_rounds},
    )


# --- pytest-benchmark ----

CASES = [pytest.param(s, name, id=f"{s.id}-{name}") for s in SHAPES for name in names_for(s.spec)]


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
    command_line(run, "bench.masked_conv", seconds=10.0)
