"""Which implementation the layers take: the kernels, or PyTorch's own operators where those are quicker.

Measured on the CPU (Zen 3, one thread, a training step): from some 12 million multiply-adds a block wins 1.02 to 2
times; below, and for 1x1 kernels on images, what surrounds the kernels weighs more than they save (0.73 to 1.0). The
functions of ``genkernels.ops`` do as they are told and always run the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..tile_conv import gpu
from ..verbose import is_on, like, say
from . import cpu

MULTIPLY_ADDS = 12_000_000
_always_kernel = False


@contextmanager
def always_kernel() -> Iterator[None]:
    """Takes the kernel at every size: for tests, and for proofs on small images."""
    global _always_kernel
    before, _always_kernel = _always_kernel, True
    try:
        yield
    finally:
        _always_kernel = before


def prefers_torch(x: Tensor, conv: Any, norm: Any, activation: str | None, negative_slope: float) -> bool:
    """Whether PyTorch's own operators are quicker for a call.

    Args:
        x: [N, C, H, W], not empty.
        conv: an ``nn.ConvTranspose2d`` or ``nn.Conv2d``.
        norm: the batch norm after it, or None.
        activation, negative_slope: what follows.
    """
    if _always_kernel:
        return False
    own = (x.is_cpu and _is_small(x, conv)) or _why_no_kernel(x) is not None
    if is_on() and not torch.compiler.is_compiling():
        kernel = "the CPU kernel" if x.is_cpu else "the Triton kernel"
        size = f"{_multiply_adds(x, conv) / 1e6:.3g} million multiply-adds, {math.prod(conv.kernel_size)} taps"
        line = _line(x, conv, norm, activation, negative_slope)
        say("conv_bn_act", "PyTorch's own operators" if own else kernel, _why_no_kernel(x) or size, line)
    return own


def _multiply_adds(x: Tensor, conv: Any) -> int:
    count, channels, height, width = x.shape
    vertical, horizontal = conv.kernel_size
    work = count * channels * height * width * conv.out_channels * vertical * horizontal
    if conv.transposed:
        return work
    down, right = conv.stride
    return work // (down * right)


def _is_small(x: Tensor, conv: Any) -> bool:
    if _multiply_adds(x, conv) < MULTIPLY_ADDS:
        return True
    return conv.kernel_size == (1, 1) and x.shape[2] * x.shape[3] > 1


def _why_no_kernel(x: Tensor) -> str | None:
    if not (x.is_cpu or x.is_cuda):
        return f"no kernel for {x.device.type}"
    if torch.compiler.is_compiling():
        return None  # the operator itself finds out
    return cpu.why_not(x) if x.is_cpu else gpu.why_not(x)


def _line(x: Tensor, conv: Any, norm: Any, activation: str | None, negative_slope: float) -> str:
    """The same call as one layer of this library's."""
    transposed = conv.transposed
    sizes: list[Any] = [conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding]
    sizes += [conv.output_padding] if transposed else []
    options: dict[str, Any] = {"bias": conv.bias is not None, "batch_norm": norm is not None, "activation": activation}
    if activation == "leaky_relu":
        options["negative_slope"] = negative_slope
    options |= {"device": str(conv.weight.device), "dtype": conv.weight.dtype}
    arguments = [*(str(size) for size in sizes), *(f"{name}={value!r}" for name, value in options.items())]
    evaluation = ".eval()" if norm is not None and not norm.training else ""
    layer = "ConvTransposeBnAct2d" if transposed else "ConvBnAct2d"
    return f"genkernels.nn.{layer}({', '.join(arguments)}){evaluation}({like(x)})"
