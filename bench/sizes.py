"""Single layers from tiny to large, accelerated and plain: whether ``genkernels.accelerate`` loses anywhere.

    python -m bench.sizes [--quick] [--seconds S] [--json PLACE]
    pytest bench/sizes.py --benchmark-only

Masked convolutions that write zeros into their weight, and blocks of each kind that the rule for taking this library's
kernel knows (``ops/conv_bn_act/heuristics.py``). Training is forward and backward in training mode; evaluation is
forward alone, without autograd; both contiguous and channels_last. The claims are the worst cases, as they are and but
for what looking at a call may cost.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import genkernels
from bench.accelerate import WritesItsWeight
from bench.core.alternatives import LAYOUTS, NCHW, Layout, to_layout
from bench.core.checks import check_equal
from bench.core.report import Claim, Report, Row
from bench.core.session import CPU, Budget, Session, command_line

OURS, PLAIN = "accelerated", "plain PyTorch"
LEAST = 0.95  # of the plain layer's speed: two timings of the same thing differ by as much
CALL = 15e-6  # seconds that looking at a call may cost, see overhead.py: tiny layers take a few times as long
MASKED = ((1, 8, 8, 8, 3), (1, 1, 64, 28, 7), (16, 1, 64, 28, 7), (16, 3, 32, 32, 5), (1, 64, 64, 28, 3),
          (64, 16, 16, 4, 3), (16, 64, 64, 28, 7), (2, 256, 256, 8, 3))  # fmt: skip
# Transposed or not, batch, channels in and out, image before, kernel, stride, padding, activation, batch norm.
BLOCKS = (
    (False, 1, 8, 8, 8, 3, 1, 1, nn.ReLU, True), (True, 1, 8, 8, 8, 4, 2, 1, nn.ReLU, True),
    (False, 16, 3, 64, 16, 4, 2, 1, nn.LeakyReLU, False), (False, 16, 3, 64, 64, 4, 2, 1, nn.LeakyReLU, False),
    (False, 16, 64, 1, 4, 4, 1, 0, nn.Sigmoid, False), (True, 16, 100, 64, 1, 4, 1, 0, nn.ReLU, True),
    (True, 4, 64, 32, 8, 4, 2, 1, nn.ReLU, True), (True, 16, 64, 32, 8, 4, 2, 1, nn.ReLU, True),
    (True, 16, 32, 3, 16, 4, 2, 1, nn.Tanh, False), (True, 16, 128, 64, 16, 4, 2, 1, nn.ReLU, True),
    (False, 4, 32, 32, 16, 3, 1, 1, nn.ReLU, True), (False, 16, 64, 128, 16, 4, 2, 1, nn.LeakyReLU, True),
    (False, 16, 64, 64, 16, 1, 1, 0, nn.ReLU, True), (False, 16, 64, 64, 32, 3, 1, 1, nn.ReLU, True),
    (False, 16, 128, 128, 16, 3, 1, 1, nn.ReLU, True), (False, 16, 128, 128, 8, 3, 2, 1, nn.ReLU, True),
    (False, 16, 128, 128, 16, 5, 2, 2, nn.ReLU, True), (True, 16, 32, 64, 16, 4, 2, 1, nn.ReLU, True),
    (True, 1, 512, 256, 4, 4, 2, 1, nn.ReLU, True), (True, 16, 64, 64, 16, 3, 1, 1, nn.ReLU, True),
)  # fmt: skip


def masked(batch: int, inputs: int, outputs: int, size: int, kernel: int) -> tuple[str, nn.Module, Tensor]:
    layer = WritesItsWeight("B", inputs, outputs, kernel, padding=kernel // 2)
    return (
        f"masked {kernel}x{kernel}, {batch}x{inputs}→{outputs}, {size}²",
        layer,
        torch.randn(batch, inputs, size, size),
    )


def block(
    transposed: bool, batch: int, inputs: int, outputs: int, size: int, kernel: int, stride: int, padding: int,
    activation: type[nn.Module], norm: bool,
) -> tuple[str, nn.Module, Tensor]:  # fmt: skip
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(inputs, outputs, kernel, stride, padding, bias=not norm)
    layers = [conv, *([nn.BatchNorm2d(outputs)] if norm else []), activation()]
    kinds = " + ".join(type(layer).__name__ for layer in layers)
    text = f"{kinds}, {kernel}x{kernel} by {stride}, {batch}x{inputs}→{outputs}, {size}²"
    return text, nn.Sequential(*layers), torch.randn(batch, inputs, size, size)


def cases() -> list[tuple[str, nn.Module, Tensor]]:
    torch.manual_seed(0)
    return [*(masked(*sizes) for sizes in MASKED), *(block(*sizes) for sizes in BLOCKS)]


def calls(layer: nn.Module, x: Tensor, train: bool, layout: Layout) -> dict[str, Callable[[], object]]:
    """Both, checked."""
    plain, ours = (copy.deepcopy(layer).train(train).to(memory_format=layout) for _ in range(2))  # type: ignore[call-overload]
    if not genkernels.accelerate(ours).swapped:
        raise AssertionError(f"nothing was swapped in {layer}")
    x = to_layout(x.clone(), layout).requires_grad_(train)

    def call(model: nn.Module) -> Callable[[], object]:
        def forward() -> object:
            with torch.no_grad():
                return model(x)

        def step() -> object:
            model.zero_grad()
            x.grad = None
            return model(x).sum().backward()

        return step if train else forward

    exact = copy.deepcopy(layer).double().train(train)(x.detach().double())
    check_equal({OURS: [ours(x)], PLAIN: [plain(x)]}, [exact])
    return {OURS: call(ours), PLAIN: call(plain)}


def beyond_a_call(row: Row) -> float:
    """The speed-up, what a call may cost left out."""
    return row.timings[PLAIN].median / (row.timings[OURS].median - CALL)


# By name: whether it trains, and the layout.
MODES = {
    f"{'training' if train else 'evaluation'}, {name.removeprefix(', ') or 'contiguous'}": (train, layout)
    for train, (name, layout) in itertools.product((True, False), LAYOUTS.items())
}


def measure(session: Session, mode: str) -> list[Row]:
    """Check, then time, every layer in one mode."""
    return [Row(mode, name, session.time(calls(layer, x, *MODES[mode])), (OURS,), PLAIN) for name, layer, x in cases()]


def run(session: Session) -> Report:
    """Time every layer both ways."""
    torch.set_num_threads(2)
    measured = session.over(MODES, measure)
    claims = []
    for mode, rows in measured.items():
        worst = min(rows, key=lambda row: row.speed_up(PLAIN))
        claims.append(Claim(f"{mode}, slowest: {worst.case}", worst.speed_up(PLAIN), "×", LEAST))
        worst = min(rows, key=beyond_a_call)
        text = f"{mode}, slowest but for {1e6 * CALL:.0f} µs a call: {worst.case}"
        claims.append(Claim(text, beyond_a_call(worst), "×", LEAST))
    rows = [row for rows in measured.values() for row in rows]
    return session.report("sizes", "Accelerated layers at every size, float32", rows, claims)


@pytest.mark.parametrize("which", [OURS, PLAIN])
@pytest.mark.parametrize("index", range(len(MASKED) + len(BLOCKS)))
def test_training(benchmark: Any, index: int, which: str) -> None:
    name, layer, x = cases()[index]
    benchmark.group = name
    benchmark.pedantic(calls(layer, x, True, NCHW)[which], rounds=5, warmup_rounds=2)


if __name__ == "__main__":
    budget = Budget(0.5, quick_seconds=0.02)
    command_line(run, "bench.sizes", {"cpu": (CPU, budget)})
