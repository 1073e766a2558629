"""Instance norm and activation, alone and in whole networks, against what PyTorch has.

    python -m bench.instance_norm [--device cpu|cuda] [--quick] [--seconds S] [--json PLACE]

times all alternatives in turn, prints the tables and the summary, and writes instance_norm.json or
gpu_instance_norm.json.

    pytest bench/instance_norm.py --benchmark-only

runs the same callables on the CPU under pytest-benchmark; a speed-up to quote is taken from the first form.

The networks are written in plain layers and go through ``genkernels.accelerate``: pix2pix's patch discriminator and
CycleGAN's generator, a forward and backward pass of each. Results are checked against float64 before anything is timed.

A GPU times the operation alone, in bfloat16; ours may be twice as far from float64 as eager PyTorch. All take turns as
CUDA graphs, L2 flushed before each.
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
from bench.core.alternatives import COMPILED, LAYOUTS, OURS, is_ours, layout_of, to_layout
from bench.core.calls import Call, call_of, freshly_compiled
from bench.core.checks import check_as_exact, check_equal
from bench.core.gpu_timing import L2_FLUSHED
from bench.core.report import Claim, Report, Row, geometric_mean
from bench.core.roofline import Work
from bench.core.session import CPU, Budget, Device, Session, command_line, gpu
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

    def work(self, backward: bool, device: Device = CPU) -> Work:
        """x read and y written; backward reads x and the gradient and writes another. Arithmetic does not count."""
        image = device.dtype.itemsize * self.batch * self.channels * self.size**2
        return Work(0, image * (5 if backward else 2))


# On a GPU those of pix2pix and CycleGAN: many planes, one image of a few, small ones.
SHAPES = {
    "cpu": (Shape(16, 64, 64), Shape(1, 256, 64), Shape(16, 128, 16), Shape(1, 64, 256), Shape(4, 512, 8)),
    "cuda": (Shape(32, 64, 128), Shape(1, 256, 64), Shape(64, 512, 16)),
}
GPU_TARGET = 1.3  # times as fast as the best alternative


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ops.instance_norm_act(x, weight, bias, activation="relu")


def two_layers(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.instance_norm(x, weight=weight, bias=bias))


def tensors(shape: Shape, device: Device) -> list[Tensor]:
    """x and the gradient of y in the device's dtype; weight and bias in float32."""
    generator = torch.Generator(device.name).manual_seed(0)
    image = (shape.batch, shape.channels, shape.size, shape.size)
    sizes = (image, image, (shape.channels,), (shape.channels,))
    x, grad, weight, bias = (torch.randn(size, generator=generator, device=device.name) for size in sizes)
    return [x.to(device.dtype), grad.to(device.dtype), weight, bias]


def prepare(shape: Shape, name: str, backward: bool, device: Device = CPU, double: bool = False) -> Call:
    family = name.removesuffix(", channels_last")
    x, grad, weight, bias = tensors(shape, device)
    # Beside a kink gradients say nothing.
    kink = two_layers(*(t.double() for t in (x, weight, bias))) < (0.05 if device.is_gpu else 1e-4)
    grad = grad.masked_fill(kink, 0)
    if double:
        x, grad, weight, bias = (t.double() for t in (x, grad, weight, bias))
    inputs = [t.requires_grad_(backward) for t in (to_layout(x, layout_of(name)), weight, bias)]
    grad = to_layout(grad, layout_of(name))
    function: Callable[..., Tensor] = ours if family == OURS else two_layers
    if family == COMPILED:
        function = freshly_compiled(function)
    return call_of(function, inputs, grad, backward=backward)


NAMES = [name + suffix for name in (OURS, EAGER, COMPILED) for suffix in LAYOUTS]


def measure(session: Session, case: Shape | str) -> list[Row]:
    """Check, then time, every alternative for one shape, or for the network of that name."""
    if isinstance(case, str):
        return [measure_network(session, case)]
    rows, device = [], session.device
    for group, backward in ((STEP, True), (FORWARD, False))[: 1 if device.is_gpu else 2]:
        calls = {name: prepare(case, name, backward, device) for name in NAMES}
        reference = [t.detach() for t in prepare(case, EAGER, backward, device, double=True)()]
        results = {name: call() for name, call in calls.items()}
        own = tuple(name for name in NAMES if is_ours(name))
        if device.is_gpu:
            check_as_exact(results, reference, peer=EAGER, ours=own)
        else:
            check_equal(results, reference, tolerance=1e-4)
        rows.append(Row(group, str(case), session.time(calls), own, EAGER, case.work(backward, device)))
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


def measure_network(session: Session, name: str) -> Row:
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

    timings = session.time({n: call(m) for n, m in models.items()})
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


def run(session: Session, cases: Sequence[Shape | str] | None = None) -> Report:
    """Measure everything."""
    on_gpu = session.device.is_gpu
    everything = SHAPES["cuda"] if on_gpu else (*SHAPES["cpu"], *NETWORKS)
    rows = [row for rows in session.over(cases or everything, measure).values() for row in rows]
    if on_gpu:
        text = "over the best alternative"
        claims = [Claim(f"{row.case}: {text}", row.speed_up(row.best_other()), "×", GPU_TARGET) for row in rows]
        return session.report("instance_norm", "Instance norm and ReLU, bfloat16", rows, claims, l2=L2_FLUSHED)
    return session.report("instance_norm", "Instance norm and activation, float32", rows, summarise(rows))


@pytest.mark.parametrize("backward", [True, False], ids=["step", "forward"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES["cpu"], ids=str)
def test_instance_norm(benchmark: Any, shape: Shape, name: str, backward: bool) -> None:
    call = prepare(shape, name, backward)
    check_equal({name: call()}, prepare(shape, EAGER, backward, double=True)(), tolerance=1e-4)
    benchmark.group = f"{shape}, {STEP if backward else FORWARD}"
    benchmark(call)


if __name__ == "__main__":
    devices = {"cpu": (CPU, Budget(4.0)), "cuda": (gpu(torch.bfloat16), Budget(1.0))}
    command_line(run, "bench.instance_norm", devices)
