"""The last 1x1 convolution with its cross-entropy: in one, and as PyTorch has them, in time and in memory.

    python -m bench.softmax_nll [--quick] [--seconds S] [--json PLACE]

times all alternatives in turn, prints the tables and the summary, and writes softmax_nll.json.

    pytest bench/softmax_nll.py --benchmark-only

runs the same callables under pytest-benchmark; a speed-up to quote is taken from the first form.

Features are channels_last, as a model of masked convolutions has them. The plain way is written as well as it can be: a
convolution, and a cross-entropy over rows of levels that lie side by side, without a copy. Memory is the growth of a
fresh process' largest resident size over one forward and backward pass.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.alternatives import COMPILED, OURS
from bench.core.calls import Call, call_of, freshly_compiled
from bench.core.checks import check_equal
from bench.core.report import Claim, Report, Row, geometric_mean
from bench.core.roofline import Work
from bench.core.session import CPU, Budget, Session, command_line
from genkernels.ops import softmax_nll

EAGER = "conv2d, cross_entropy"
NAMES = (OURS, EAGER, COMPILED)
STEP, FORWARD = "forward + backward", "forward"
TARGET, MEMORY_TARGET = 1.3, 3.0  # times as fast, times as little memory


@dataclass(frozen=True)
class Shape:
    batch: int
    colours: int
    size: int
    features: int
    levels: int

    def __str__(self) -> str:
        return f"{self.batch} images, {self.size}²×{self.colours}, {self.features} features, {self.levels} levels"

    def work(self, backward: bool) -> Work:
        """Products with the weight: one forward, two more backward. Features are read and written."""
        pixels = self.batch * self.size**2
        products = 2 * pixels * self.features * self.colours * self.levels
        return Work(products * (3 if backward else 1), 4 * pixels * self.features * (3 if backward else 1))


SHAPES = (
    Shape(16, 3, 32, 64, 256),
    Shape(16, 3, 32, 128, 256),
    Shape(64, 3, 32, 64, 256),
    Shape(64, 3, 32, 128, 256),
    Shape(64, 1, 28, 64, 256),
    Shape(64, 1, 28, 64, 17),
)


def plain(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    logits = F.conv2d(x, weight, bias)  # [N, C * L, H, W], channels_last: a row of levels for each sub-pixel
    rows = logits.permute(0, 2, 3, 1).reshape(-1, weight.shape[0] // target.shape[1])
    return F.cross_entropy(rows, target.permute(0, 2, 3, 1).reshape(-1))


def ours(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    return softmax_nll(x, weight, bias, target, reduction="mean")


def prepare(shape: Shape, name: str, backward: bool, double: bool = False) -> Call:
    generator = torch.Generator().manual_seed(0)
    outputs = shape.colours * shape.levels
    x = torch.randn(shape.batch, shape.features, shape.size, shape.size, generator=generator)
    weight = torch.randn(outputs, shape.features, 1, 1, generator=generator) * shape.features**-0.5
    bias = torch.randn(outputs, generator=generator)
    target = torch.randint(0, shape.levels, (shape.batch, shape.colours, shape.size, shape.size), generator=generator)
    inputs = [x.contiguous(memory_format=torch.channels_last), weight, bias]
    inputs = [(t.double() if double else t).requires_grad_(backward) for t in inputs]
    function: Callable[..., Tensor] = ours if name == OURS else plain
    if name == COMPILED:
        function = freshly_compiled(function)
    return call_of(partial(function, target=target), inputs, None, backward=backward)


def print_growth(name: str, *sizes: int) -> None:
    """Print by how many bytes the largest resident size of this process grows over one call."""
    call, small = prepare(Shape(*sizes), name, backward=True), prepare(Shape(1, 1, 8, 8, 8), name, backward=True)
    small()
    before = _largest_resident()
    call()
    print(_largest_resident() - before)


def _largest_resident() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def memory(shape: Shape, name: str) -> int:
    """Bytes that one forward and backward pass takes beside its inputs, in a fresh process."""
    code = f"from bench.softmax_nll import print_growth; print_growth({name!r}, *{astuple(shape)})"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return int(printed.split()[-1])


def measure(session: Session, shape: Shape) -> list[Row]:
    """Check, then time, every alternative for one shape."""
    rows = []
    for group, backward in ((STEP, True), (FORWARD, False)):
        calls = {name: prepare(shape, name, backward) for name in NAMES}
        reference = [t.detach() for t in prepare(shape, EAGER, backward, double=True)()]
        check_equal({name: call() for name, call in calls.items()}, reference, tolerance=1e-4)
        rows.append(Row(group, str(shape), session.time(calls), (OURS,), EAGER, shape.work(backward)))
    return rows


def run(session: Session) -> Report:
    """Measure everything."""
    rows = [row for rows in session.over(SHAPES, measure).values() for row in rows]
    return session.report("softmax_nll", "1x1 convolution and cross-entropy, float32", rows, summarise(rows))


def summarise(rows: Sequence[Row]) -> list[Claim]:
    claims = []
    many = [row for row in rows if "256 levels" in row.case]
    for group in (STEP, FORWARD):
        best = {row.case: row.speed_up(row.best_other()) for row in many if row.group == group}
        worst = min(best, key=best.__getitem__)
        text = f"{group}, 256 levels: over the best alternative"
        claims += [
            Claim(f"{text}, geometric mean", geometric_mean(best.values()), "×"),
            Claim(f"{text}, worst ({worst})", best[worst], "×", TARGET if group == STEP else None),
        ]
    large = SHAPES[2]
    taken = {name: memory(large, name) for name in (OURS, EAGER)}
    return [
        *claims,
        Claim(f"memory of a step, {large}: {OURS}", taken[OURS] / 2**20, " MiB"),
        Claim(f"memory of a step, {large}: {EAGER}", taken[EAGER] / 2**20, " MiB"),
        Claim(f"memory of a step, {large}: less by", taken[EAGER] / taken[OURS], "×", MEMORY_TARGET),
    ]


@pytest.mark.parametrize("backward", [True, False], ids=["step", "forward"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax_nll(benchmark: Any, shape: Shape, name: str, backward: bool) -> None:
    call = prepare(shape, name, backward)
    check_equal({name: call()}, prepare(shape, EAGER, backward, double=True)(), tolerance=1e-4)
    benchmark.group = f"{shape}, {STEP if backward else FORWARD}"
    benchmark(call)


if __name__ == "__main__":
    command_line(run, "bench.softmax_nll", {"cpu": (CPU, Budget(4.0))})
