"""Which implementation the layers take: the kernels, or PyTorch's own operators where those are quicker.

Measured on the CPU (Zen 3, one thread, a training step): from some 12 million multiply-adds a block wins 1.02 to 2
times; below, and for 1x1 kernels on images, what surrounds the kernels weighs more than they save (0.73 to 1.0). The
functions of ``genkernels.ops`` do as they are told and always run the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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


def is_forced() -> bool:
    return _always_kernel


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
    own, reason = _choose(x, conv)
    if is_on() and not torch.compiler.is_compiling():
        kernel = "the CPU kernel" if x.is_cpu else "the Triton kernel"
        line = _line(x, conv, norm, activation, negative_slope)
        say("conv_bn_act", "PyTorch's own operators" if own else kernel, reason, line)
    return own


def _choose(x: Tensor, conv: Any) -> tuple[bool, str]:
    if not (x.is_cpu or x.is_cuda):
        return True, f"no kernel for {x.device.type}"
    if not torch.compiler.is_compiling():
        missing = cpu.why_not(x) if x.is_cpu else gpu.why_not(x)
        if missing is not None:
            return True, missing
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    if not x.is_cpu:
        return False, f"{taps} taps"
    work = x.shape[0] * x.shape[2] * x.shape[3] * conv.in_channels * conv.out_channels * taps
    if isinstance(conv, nn.Conv2d):
        work = work // (conv.stride[0] * conv.stride[1])
    own = work < MULTIPLY_ADDS or (taps == 1 and x.shape[2] * x.shape[3] > 1)
    return own, f"{work / 1e6:.3g} million multiply-adds, {taps} taps"


def _line(x: Tensor, conv: Any, norm: Any, activation: str | None, negative_slope: float) -> str:
    """The same call as one layer of this library's."""
    transposed = isinstance(conv, nn.ConvTranspose2d)
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
