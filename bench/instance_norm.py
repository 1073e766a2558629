"""Instance norm and activation, alone and in whole networks, against what PyTorch has, on the CPU.

    python -m bench.instance_norm [--quick] [--seconds S] [--json DIR]

times all alternatives in turn, prints the tables and the summary, and writes DIR/<machine>/instance_norm.json.

    pytest bench/instance_norm.py --benchmark-only

runs the same callables under pytest-benchmark; a speed-up to quote is taken from the first form.

The networks are written in plain layers and go through ``genkernels.accelerate``: pix2pix's patch discriminator and
CycleGAN's generator, a forward and backward pass of each. Results are checked against float64 before anything is timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genkernels
from bench.core.report import Claim, Report, Row, command_line
from bench.core.roofline import Ceilings, Work, measure_ceilings
from bench.core.timing import check_equal, geometric_mean, interleave
from bench.masked_conv_baselines import COMPILED, NCHW, NHWC, OURS, to_layout
from genkernels import ops

EAGER = "two layers"
PLAIN, ACCELERATED = "plain PyTorch", "accelerated"
STEP, FORWARD, NETWORK = "forward + backward", "forward", "a network, forward + backward"


@dataclass(frozen=True)
class Shape:
    batch: int
    channels: int
    size: int

    def __str__(self) -> str:
        return f"{self.batch}×{self.channels}, {self.size}²"

    def work(self, backward: bool) -> Work:
        """x read and y written; backward reads x and the gradient and writes another. Arithmetic does not count."""
        image = 4 * self.batch * self.channels * self.size**2
        return Work(0, image * (5 if backward else 2))


SHAPES = (Shape(16, 64, 64), Shape(1, 256, 64), Shape(16, 128, 16), Shape(1, 64, 256), Shape(4, 512, 8))
Call = Callable[[], tuple[Tensor, ...]]


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ops.instance_norm_act(x, weight, bias, activation="relu")


def two_layers(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.instance_norm(x, weight=weight, bias=bias))


def tensors(shape: Shape, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = (shape.batch, shape.channels, shape.size, shape.size)
    sizes = (image, image, (shape.channels,), (shape.channels,))
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def prepare(shape: Shape, name: str, backward: bool, dtype: torch.dtype = torch.float32) -> Call:
    family = name.removesuffix(", channels_last")
    layout = NCHW if name == family else NHWC
    x, grad, weight, bias = tensors(shape, dtype)
    beside = two_layers(*(t.double() for t in (x, weight, bias))) < 1e-4  # a kink: gradients there prove nothing
    inputs = [t.requires_grad_(backward) for t in (to_layout(x, layout), weight, bias)]
    grad = to_layout(grad.masked_fill(beside, 0), layout)
    function: Callable[..., Tensor] = ours if family == OURS else two_layers
    if family == COMPILED:
        torch.compiler.reset()
        function = torch.compile(function, dynamic=False, fullgraph=True)

    def step() -> tuple[Tensor, ...]:
        if not backward:
            with torch.inference_mode():
                return (function(*inputs),)
        y = function(*inputs)
        return y, *torch.autograd.grad(y, inputs, grad)

    return step


NAMES = [name + suffix for name in (OURS, EAGER, COMPILED) for suffix in ("", ", channels_last")]


def measure(shape: Shape, seconds: float, min_rounds: int) -> list[Row]:
    rows = []
    for group, backward in ((STEP, True), (FORWARD, False)):
        calls = {name: prepare(shape, name, backward) for name in NAMES}
        reference = prepare(shape, EAGER, backward, torch.float64)()
        check_equal({name: call() for name, call in calls.items()}, reference, tolerance=1e-4)
        timings = interleave(calls, seconds=seconds, min_rounds=min_rounds)
        own = tuple(name for name in NAMES if name.startswith(OURS))
        rows.append(Row(group, str(shape), timings, own, EAGER, shape.work(backward)))
    return rows


# --- networks --------------------------------------------------------------------------------------------------------


def patch_discriminator(width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for inputs, stride in ((width, 2), (2 * width, 2), (4 * width, 1)):
        layers += [nn.Conv2d(inputs, 2 * inputs, 4, stride, 1), nn.InstanceNorm2d(2 * inputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels)]
        self.block = nn.Sequential(*half, nn.ReLU(), *copy.deepcopy(half))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def reflecting_generator(width: int = 64, blocks: int = 6) -> nn.Sequential:
    def part(conv: nn.Module, channels: int) -> list[nn.Module]:
        return [conv, nn.InstanceNorm2d(channels), nn.ReLU()]

    layers = [nn.ReflectionPad2d(3), *part(nn.Conv2d(3, width, 7), width)]
    for inputs in (width, 2 * width):
        layers += part(nn.Conv2d(inputs, 2 * inputs, 3, 2, 1), 2 * inputs)
    layers += [Residual(4 * width) for _ in range(blocks)]
    for inputs in (4 * width, 2 * width):
        layers += part(nn.ConvTranspose2d(inputs, inputs // 2, 3, 2, 1, output_padding=1), inputs // 2)
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "pix2pix's discriminator, 4 images, 128²": (patch_discriminator, (4, 3, 128, 128)),
    "CycleGAN's generator, 1 image, 128²": (reflecting_generator, (1, 3, 128, 128)),
}


def measure_network(name: str, seconds: float, min_rounds: int) -> Row:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    plain = make()
    accelerated = copy.deepcopy(plain)
    genkernels.accelerate(accelerated)
    x = torch.randn(shape)
    with torch.inference_mode():
        exact = (copy.deepcopy(plain).double()(x.double()),)
        check_equal({ACCELERATED: (accelerated(x),), PLAIN: (plain(x),)}, exact, tolerance=1e-4)
    models: dict[str, Callable[..., Tensor]] = {ACCELERATED: accelerated, PLAIN: plain}
    models[COMPILED] = torch.compile(plain, dynamic=False)

    def call(model: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: model(x).square().mean().backward()

    timings = interleave({n: call(m) for n, m in models.items()}, seconds=seconds, min_rounds=min_rounds)
    return Row(NETWORK, name, timings, (ACCELERATED,), PLAIN)


# --- the report ------------------------------------------------------------------------------------------------------


def summarise(rows: Sequence[Row]) -> list[Claim]:
    claims = []
    for group in (STEP, FORWARD):
        mine = [row for row in rows if row.group == group]
        best = {row.case: row.speed_up(row.best_other(), row.best_ours()) for row in mine}
        worst = min(best, key=best.__getitem__)
        eager = geometric_mean([row.speed_up(EAGER) for row in mine])
        claims += [
            Claim(f"{group}: over {EAGER}, geometric mean", eager, "×"),
            Claim(f"{group}: better layout over the best alternative", geometric_mean(best.values()), "×"),
            Claim(f"{group}: over the best alternative, worst ({worst})", best[worst], "×", 1.0),
        ]
    return claims + [
        Claim(f"{row.case}: over the best alternative", row.speed_up(row.best_other()), "×", 1.0)
        for row in rows
        if row.group == NETWORK
    ]


def run(quick: bool, seconds: float) -> Report:
    """Measure everything; the ceilings before and after, of which the higher counts."""
    seconds, min_rounds = (min(seconds, 0.5), 3) if quick else (seconds, 11)
    ceilings: Ceilings = measure_ceilings()
    rows: list[Row] = []
    for shape in SHAPES:
        print(f"{shape} ...", flush=True)
        rows += measure(shape, seconds, min_rounds)
    for name in NETWORKS:
        print(f"{name} ...", flush=True)
        rows.append(measure_network(name, seconds, min_rounds))
    return Report(
        benchmark="instance_norm",
        title="Instance norm and activation, float32",
        ceilings=ceilings.highest(measure_ceilings()),
        rows=tuple(rows),
        claims=tuple(summarise(rows)),
        settings={"quick": quick, "seconds": seconds, "min_rounds": min_rounds},
    )


@pytest.mark.parametrize("backward", [True, False], ids=["step", "forward"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_instance_norm(benchmark: Any, shape: Shape, name: str, backward: bool) -> None:
    call = prepare(shape, name, backward)
    check_equal({name: call()}, prepare(shape, EAGER, backward, torch.float64)(), tolerance=1e-4)
    benchmark.group = f"{shape}, {STEP if backward else FORWARD}"
    benchmark(call)


if __name__ == "__main__":
    command_line(run, "bench.instance_norm", seconds=4.0)
