"""DCGAN's generator blocks on a GPU, one training step each: ours against eager PyTorch and torch.compile; bfloat16.

    python -m bench.gpu_conv_bn_act [--seconds S] [--json FILE]

Transposed convolutions 4x4 of stride 2 on a batch of 128 with batch norm and ReLU; the last has tanh alone. Every
alternative's results and gradients are compared with float64 (ours may be twice as far from it as eager PyTorch)
before it is timed; then all take turns as CUDA graphs, L2 flushed before each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.gpu_timing import check_as_exact, command_line, gpu_machine, interleave_on_gpu, measure_gpu_ceilings
from bench.core.report import Claim, Report, Row
from bench.core.roofline import Work
from genkernels.ops import conv_transpose2d_bn_act

DTYPE = torch.bfloat16
DEVICE = "cuda"  # replaced in tests
BATCH = 128
TARGET = 1.3  # times as fast as the best alternative
OURS, EAGER, COMPILED, LAST = "ours", "eager", "torch.compile", ", channels_last"


@dataclass(frozen=True)
class Block:
    in_channels: int
    out_channels: int
    size: int
    norm: bool = True

    def __str__(self) -> str:
        return f"{BATCH}×{self.in_channels}→{self.out_channels}, {self.size}², {'BN + ReLU' if self.norm else 'tanh'}"

    @property
    def work(self) -> Work:
        """Three products of 4 taps for each pixel of the result; x, weight and y once each way, z with batch norm."""
        pixels = BATCH * self.size**2
        flops = 3 * 2 * 4 * 4 * pixels * self.in_channels * self.out_channels
        x, y = pixels * self.in_channels, 4 * pixels * self.out_channels
        weight = 16 * self.in_channels * self.out_channels
        images = 3 * x + (6 if self.norm else 3) * y
        return Work(flops, DTYPE.itemsize * (images + 4 * weight))


BLOCKS = (Block(512, 256, 8), Block(256, 128, 16), Block(128, 64, 32), Block(64, 3, 64, norm=False))


def plain(block: Block) -> Callable[..., Tensor]:
    def apply(x: Tensor, weight: Tensor, *norm: Tensor) -> Tensor:
        z = F.conv_transpose2d(x, weight, None, 2, 1)
        return F.batch_norm(z, None, None, *norm, True).relu() if block.norm else z.tanh()  # type: ignore[call-arg]

    return apply


def ours(block: Block) -> Callable[..., Tensor]:
    def apply(x: Tensor, weight: Tensor, *norm: Tensor) -> Tensor:
        return conv_transpose2d_bn_act(
            x, weight, stride=2, padding=1, batch_norm=block.norm, training=block.norm,
            **dict(zip(("bn_weight", "bn_bias"), norm, strict=False)), activation="relu" if block.norm else "tanh",
        )  # fmt: skip

    return apply


def alternatives(block: Block) -> dict[str, tuple[Callable[..., Tensor], torch.memory_format]]:
    compiled = torch.compile(plain(block), dynamic=False, fullgraph=True)
    return {
        OURS + LAST: (ours(block), torch.channels_last),
        OURS: (ours(block), torch.contiguous_format),
        EAGER + LAST: (plain(block), torch.channels_last),
        EAGER: (plain(block), torch.contiguous_format),
        COMPILED + LAST: (compiled, torch.channels_last),
        COMPILED: (compiled, torch.contiguous_format),
    }


def tensors(block: Block) -> tuple[list[Tensor], Tensor]:
    """x, weight and with batch norm its two parameters in float32; and the gradient of the result."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE)

    x = random(BATCH, block.in_channels, block.size, block.size).to(DTYPE)
    weight = (random(block.in_channels, block.out_channels, 4, 4) * 0.02).to(DTYPE)
    norm = [1 + 0.02 * random(block.out_channels), 0.1 * random(block.out_channels)] if block.norm else []
    return [x, weight, *norm], random(BATCH, block.out_channels, 2 * block.size, 2 * block.size).to(DTYPE)


def step_of(
    apply: Callable[..., Tensor], layout: torch.memory_format, inputs: list[Tensor], grad_output: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward: y and the gradients of all inputs."""
    leaves = [
        (t.contiguous(memory_format=layout) if t.dim() == 4 else t).detach().clone().requires_grad_() for t in inputs
    ]
    grad = grad_output.contiguous(memory_format=layout)

    def step() -> tuple[Tensor, ...]:
        y = apply(*leaves)
        return (y, *torch.autograd.grad(y, leaves, grad))

    return step


def measure(block: Block, seconds: float, left_out: dict[str, str]) -> Row:
    """Check, then time, every alternative for one block."""
    torch.compiler.reset()
    inputs, grad_output = tensors(block)
    double = step_of(plain(block), torch.contiguous_format, [t.double() for t in inputs], grad_output.double())
    reference = [t.detach() for t in double()]
    steps, results = {}, {}
    for name, (apply, layout) in alternatives(block).items():
        try:
            steps[name] = step_of(apply, layout, inputs, grad_output)
            results[name] = [t.detach() for t in steps[name]()]
        except Exception as error:  # of an alternative: the others still count
            if name.startswith(OURS):
                raise
            steps.pop(name, None)
            left_out[f"{block}: {name}"] = f"{type(error).__name__}: {error}"
            print(f"left out: {name}: {error}", flush=True)
    own = tuple(name for name in steps if name.startswith(OURS))
    check_as_exact(results, reference, peer=EAGER, ours=own)
    del reference, results
    timings = interleave_on_gpu(steps, seconds=seconds)
    return Row("training step", str(block), timings, ours=own, baseline=EAGER + LAST, work=block.work)


def run(seconds: float) -> Report:
    """Measure everything; the ceilings before and after, of which the higher counts."""
    ceilings = measure_gpu_ceilings(DTYPE)
    left_out: dict[str, str] = {}
    rows = []
    for block in BLOCKS:
        print(f"{block} ...", flush=True)
        rows.append(measure(block, seconds, left_out))
    return Report(
        benchmark="gpu_conv_bn_act",
        title="DCGAN generator blocks, bfloat16",
        ceilings=ceilings.highest(measure_gpu_ceilings(DTYPE)),
        rows=tuple(rows),
        claims=tuple(
            Claim(f"{row.case}: over the best alternative", row.speed_up(row.best_other()), "×", TARGET) for row in rows
        ),
        settings={"seconds": seconds, "l2": "flushed before each call", "left_out": left_out},
        machine=gpu_machine(),
    )


if __name__ == "__main__":
    command_line(run, "bench.gpu_conv_bn_act", seconds=1.0)
