"""Convolution + batch norm + activation: the blocks of the 64x64 DCGAN against every alternative a user has.

    python -m bench.conv_bn_act [--device cpu|cuda] [--quick] [--seconds S] [--json PLACE]

times all alternatives in turn, prints the tables and the summary, and writes conv_bn_act.json or gpu_conv_bn_act.json.

    pytest bench/conv_bn_act.py --benchmark-only [-k 'up_512 and eager']

runs the same callables on the CPU under pytest-benchmark; a speed-up to quote is taken from the first form.

Every case is checked against float64 (output and all gradients) before it is timed. The gradient of the input is always
owed: a generator is trained through its discriminator. In evaluation the alternatives also come with the batch norm
folded into the weights by hand beforehand, which a user can do once training is over.

A GPU trains the generator of 128x128 images on a batch of 128 in bfloat16; ours may be twice as far from float64 as the
three layers of PyTorch. All take turns as CUDA graphs, L2 flushed before each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.alternatives import COMPILED, LAST, NCHW, OURS, Layout, is_ours, layout_of, to_layout
from bench.core.calls import Call, call_of, freshly_compiled
from bench.core.checks import check_as_exact, check_equal
from bench.core.gpu_timing import L2_FLUSHED
from bench.core.report import Claim, Report, Row, geometric_mean
from bench.core.roofline import Work
from bench.core.session import CPU, Budget, Device, Session, command_line, gpu
from genkernels import ops

EAGER = "three layers"
FOLDED = "folded"
TRAINING = "training, forward + backward"
EVALUATION = "evaluation, forward"
EPS = 1e-5
OPTIONS = {"stride": 2, "padding": 1}
KERNEL = 4


@dataclass(frozen=True)
class Shape:
    transposed: bool
    in_channels: int
    out_channels: int
    size: int
    activation: str
    batch_norm: bool
    batch: int = 16

    def __str__(self) -> str:
        kind = "transposed" if self.transposed else "strided"
        norm = "batch norm, " if self.batch_norm else ""
        return f"{kind} {self.batch}×{self.in_channels}→{self.out_channels}, {self.size}², {norm}{self.activation}"

    @property
    def id(self) -> str:
        """For ``pytest -k``, which takes no other characters."""
        return f"{'up' if self.transposed else 'down'}_{self.in_channels}to{self.out_channels}"

    @property
    def low_pixels(self) -> int:
        return (self.size if self.transposed else self.size // 2) ** 2

    @property
    def numbers(self) -> tuple[int, int, int]:
        """How many there are in x, in y and in the weight."""
        x = self.batch * self.in_channels * self.size**2
        y = self.batch * self.out_channels * self.size**2
        return x, y * 4 if self.transposed else y // 4, self.in_channels * self.out_channels * KERNEL**2

    def work(self, backward: bool, device: Device = CPU) -> Work:
        """Every tap of every pixel of the low image, border included; y and the gradients once."""
        flops = 2 * self.batch * self.low_pixels * self.in_channels * self.out_channels * KERNEL**2
        x, y, weight = self.numbers
        if device.is_gpu:  # x, weight and y once each way, and what batch norm normalises
            return Work(3 * flops, device.dtype.itemsize * (3 * x + (6 if self.batch_norm else 3) * y + 4 * weight))
        forward = Work(flops, 4 * (x + y + weight))
        return forward + Work(2 * flops, 4 * (2 * x + 2 * y + 2 * weight)) if backward else forward


GENERATOR = (
    Shape(True, 512, 256, 4, "relu", True),
    Shape(True, 256, 128, 8, "relu", True),
    Shape(True, 128, 64, 16, "relu", True),
    Shape(True, 64, 3, 32, "tanh", False),
)
DISCRIMINATOR = (
    Shape(False, 3, 64, 64, "leaky_relu", False),
    Shape(False, 64, 128, 32, "leaky_relu", True),
    Shape(False, 128, 256, 16, "leaky_relu", True),
    Shape(False, 256, 512, 8, "leaky_relu", True),
)
SHAPES = {
    "cpu": GENERATOR + DISCRIMINATOR,
    "cuda": tuple(replace(shape, size=2 * shape.size, batch=128) for shape in GENERATOR),
}
# name, shapes, group: the geometric mean over the three layers, and over each of the shapes
TARGETS = (
    ("generator", GENERATOR, TRAINING, 1.8, 1.0),
    ("generator", GENERATOR, EVALUATION, 1.3, 1.0),
    ("discriminator", DISCRIMINATOR, TRAINING, 1.3, 1.0),
    ("discriminator", DISCRIMINATOR, EVALUATION, None, None),
)
TARGET_WIDEST = 3.0  # 512 -> 256, training
GPU_TARGET = 1.3  # times as fast as the best alternative
KINKED = ("relu", "leaky_relu")
KINK = 1e-4  # above the float32 errors of all alternatives


class Problem:
    """The tensors of one block on a device, in a given layout, or in float64."""

    def __init__(self, shape: Shape, *, device: Device = CPU, layout: Layout = NCHW, double: bool = False) -> None:
        generator = torch.Generator(device.name).manual_seed(0)

        def random(*size: int) -> Tensor:
            values = torch.randn(size, generator=generator, device=device.name)
            return to_layout(values, layout) if len(size) == 4 else values

        s = shape
        channels = (s.in_channels, s.out_channels) if s.transposed else (s.out_channels, s.in_channels)
        out_size = s.size * 2 if s.transposed else s.size // 2
        self.shape = s
        x = random(s.batch, s.in_channels, s.size, s.size)
        weight = random(*channels, KERNEL, KERNEL) * 0.02
        grad = random(s.batch, s.out_channels, out_size, out_size)
        self.x, self.weight, self.grad = (t.to(device.dtype) for t in (x, weight, grad))
        self.mean: Tensor | None = None
        self.variance: Tensor | None = None
        if device.is_gpu:  # without running statistics and, where there is no batch norm, without a bias
            gamma, beta = 1 + 0.02 * random(s.out_channels), 0.1 * random(s.out_channels)
            self.per_channel = [gamma, beta] if s.batch_norm else []
        else:
            self.per_channel = [random(s.out_channels) for _ in range(2 if s.batch_norm else 1)]
            self.mean, self.variance = random(s.out_channels) * 0.1, random(s.out_channels).square() + 0.5
        if double:
            self.x, self.weight, self.grad, *self.per_channel = (
                t.double() for t in (self.x, self.weight, self.grad, *self.per_channel)
            )
            if self.mean is not None and self.variance is not None:
                self.mean, self.variance = self.mean.double(), self.variance.double()
        if s.activation in KINKED and not device.is_gpu:
            self.grad.masked_fill_(near_kink(s), 0)

    def norm(self, training: bool) -> dict[str, Any]:
        if not self.shape.batch_norm:
            return {}
        return {"batch_norm": True, "training": training, "eps": EPS,
                "running_mean": self.mean, "running_var": self.variance}  # fmt: skip


@lru_cache
def near_kink(shape: Shape) -> Tensor:
    """Where rounding decides on which side of zero an activation stands in training: gradients there say nothing."""
    p = Problem(replace(shape, activation="none"), double=True)
    return three_layers(p, training=True)(p.x, p.weight, *p.per_channel).abs() < KINK


def _activate(y: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return y
    if activation == "leaky_relu":
        return F.leaky_relu(y, 0.2, inplace=True)
    return y.relu_() if activation == "relu" else y.tanh()


def _conv(shape: Shape) -> Callable[..., Tensor]:
    return F.conv_transpose2d if shape.transposed else F.conv2d


def three_layers(p: Problem, training: bool) -> Callable[..., Tensor]:
    conv, s = _conv(p.shape), p.shape

    def apply(x: Tensor, weight: Tensor, first: Tensor | None = None, second: Tensor | None = None) -> Tensor:
        if not s.batch_norm:
            return _activate(conv(x, weight, first, **OPTIONS), s.activation)
        y = F.batch_norm(conv(x, weight, None, **OPTIONS), p.mean, p.variance, first, second, training, 0.1, EPS)
        return _activate(y, s.activation)

    return apply


def ours(p: Problem, training: bool) -> Callable[..., Tensor]:
    function = ops.conv_transpose2d_bn_act if p.shape.transposed else ops.conv2d_bn_act
    options = {**OPTIONS, "activation": p.shape.activation, "negative_slope": 0.2, **p.norm(training)}

    def apply(x: Tensor, weight: Tensor, first: Tensor | None = None, second: Tensor | None = None) -> Tensor:
        if not p.shape.batch_norm:
            return function(x, weight, first, **options)
        return function(x, weight, bn_weight=first, bn_bias=second, **options)

    return apply


def folded(p: Problem, training: bool) -> Callable[..., Tensor]:
    """Evaluation with the batch norm multiplied into weights and bias beforehand."""
    assert p.mean is not None
    assert p.variance is not None
    gamma, beta = p.per_channel
    scale = gamma * (p.variance + EPS).rsqrt()
    weight = p.weight * scale.view((1, -1, 1, 1) if p.shape.transposed else (-1, 1, 1, 1))
    bias = beta - p.mean * scale

    def apply(x: Tensor, *_: Tensor) -> Tensor:
        return _activate(_conv(p.shape)(x, weight, bias, **OPTIONS), p.shape.activation)

    return apply


FAMILIES = {OURS: ours, EAGER: three_layers, COMPILED: three_layers, FOLDED: folded}


def _prepare(p: Problem, build: Callable[..., Callable[..., Tensor]], training: bool, compiled: bool) -> Call:
    apply = build(p, training)
    if compiled:
        apply = freshly_compiled(apply)
    inputs = [t.clone().requires_grad_(training) for t in (p.x, p.weight, *p.per_channel)]
    return call_of(apply, inputs, p.grad, backward=training)


def names_for(shape: Shape, training: bool, device: Device = CPU) -> list[str]:
    families = [OURS, EAGER, COMPILED] + ([FOLDED] if shape.batch_norm and not training else [])
    return [name + layout for name in families for layout in ((LAST, "") if device.is_gpu else ("", LAST))]


def prepare(shape: Shape, name: str, training: bool, device: Device = CPU) -> Call:
    family = name.removesuffix(LAST)
    problem = Problem(shape, device=device, layout=layout_of(name))
    return _prepare(problem, FAMILIES[family], training, compiled=family == COMPILED)


def reference(shape: Shape, training: bool, device: Device = CPU) -> Sequence[Tensor]:
    """y and the gradients in float64."""
    p = Problem(shape, device=device, double=True)
    return [t.detach() for t in _prepare(p, three_layers, training, compiled=False)()]


def measure(session: Session, shape: Shape) -> list[Row]:
    """Check, then time, every alternative for one shape, in training and on the CPU in evaluation."""
    rows, device = [], session.device
    for group, training in ((TRAINING, True), (EVALUATION, False))[: 1 if device.is_gpu else 2]:
        results: dict[str, Sequence[Tensor]] = {}

        def make(name: str, training: bool = training, results: dict[str, Any] = results) -> Call:
            call = prepare(shape, name, training, device)
            results[name] = [t.detach() for t in call()]
            return call

        calls = session.build(names_for(shape, training, device), make, shape)
        own = tuple(name for name in calls if is_ours(name))
        exact = reference(shape, training, device)
        if device.is_gpu:
            check_as_exact(results, exact, peer=EAGER, ours=own)
        else:  # statistics of random numbers are not exact: all alternatives round
            check_equal(results, exact, tolerance=1e-4)
        results.clear()  # memory that the timed calls may need
        del exact
        baseline = EAGER + LAST if device.is_gpu else EAGER
        rows.append(Row(group, str(shape), session.time(calls), own, baseline, shape.work(training, device)))
    return rows


def summarise(measured: dict[Shape, list[Row]]) -> list[Claim]:
    """Speed-ups over the three layers and over the best alternative, and the worst shapes."""
    claims = []
    for model, shapes, group, mean_target, worst_target in TARGETS:
        rows = {s: next(r for r in measured[s] if r.group == group) for s in shapes}
        eager = {s: row.speed_up(EAGER) for s, row in rows.items()}
        best = {s: row.speed_up(row.best_other(), row.best_ours()) for s, row in rows.items()}
        worst = min(eager, key=eager.__getitem__)
        claims += [
            Claim(f"{model}, {group}: over {EAGER}, geometric mean", geometric_mean(eager.values()), "×", mean_target),
            Claim(f"{model}, {group}: over {EAGER}, worst ({worst})", eager[worst], "×", worst_target),
            Claim(f"{model}, {group}: better layout over the best alternative", geometric_mean(best.values()), "×"),
        ]
    widest = next(row for row in measured[GENERATOR[0]] if row.group == TRAINING)
    claims.append(Claim(f"{GENERATOR[0]}, {TRAINING}: over {EAGER}", widest.speed_up(EAGER), "×", TARGET_WIDEST))
    return claims


def gpu_claims(rows: Sequence[Row]) -> list[Claim]:
    return [
        Claim(f"{row.case}: over the best alternative", row.speed_up(row.best_other()), "×", GPU_TARGET) for row in rows
    ]


def run(session: Session, shapes: Sequence[Shape] | None = None) -> Report:
    """Measure everything."""
    on_gpu = session.device.is_gpu
    measured = session.over(shapes or SHAPES["cuda" if on_gpu else "cpu"], measure)
    rows = [row for rows in measured.values() for row in rows]
    if on_gpu:
        title = "DCGAN generator blocks, bfloat16"
        return session.report("conv_bn_act", title, rows, gpu_claims(rows), l2=L2_FLUSHED)
    return session.report("conv_bn_act", "Blocks of the 64×64 DCGAN, float32", rows, summarise(measured))


# --- pytest-benchmark ----


def _cases(training: bool) -> list[Any]:
    return [pytest.param(s, name, id=f"{s.id}-{name}") for s in SHAPES["cpu"] for name in names_for(s, training)]


@pytest.mark.parametrize(("shape", "name"), _cases(True))
def test_training(benchmark: Any, shape: Shape, name: str) -> None:
    _bench(benchmark, shape, name, True)


@pytest.mark.parametrize(("shape", "name"), _cases(False))
def test_evaluation(benchmark: Any, shape: Shape, name: str) -> None:
    _bench(benchmark, shape, name, False)


def _bench(benchmark: Any, shape: Shape, name: str, training: bool) -> None:
    call = prepare(shape, name, training)
    check_equal({name: call()}, reference(shape, training), tolerance=1e-4)
    benchmark.group = f"{shape}, {TRAINING if training else EVALUATION}"
    benchmark(call)


if __name__ == "__main__":
    devices = {"cpu": (CPU, Budget(4.0)), "cuda": (gpu(torch.bfloat16), Budget(1.0))}
    command_line(run, "bench.conv_bn_act", devices)
