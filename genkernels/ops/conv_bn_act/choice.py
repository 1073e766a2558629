"""Which implementation the layers take: the kernels, or PyTorch's own operators where those are quicker.

Measured on the CPU (Zen 3, one thread, a training step): from some 12 million multiply-adds a block wins 1.02 to 2
times; below, and for 1x1 kernels on images, what surrounds the kernels weighs more than they save (0.73 to 1.0). The
functions of ``genkernels.ops`` do as they are told and always run the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..verbose import is_on, say

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


def prefers_torch(x: Tensor, weight: Tensor, stride: tuple[int, ...], transposed: bool) -> bool:
    """Whether PyTorch's own operators are quicker for a call; x is [N, C, H, W] and not empty."""
    if _always_kernel or not x.is_cpu:
        return False
    taps = weight.shape[2] * weight.shape[3]
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    work = pixels * weight.shape[0] * weight.shape[1] * taps
    if not transposed:
        work = work // (stride[0] * stride[1])
    own = work < MULTIPLY_ADDS or (taps == 1 and x.shape[2] * x.shape[3] > 1)
    if is_on() and not torch.compiler.is_compiling():
        layer = "ConvTransposeBnAct2d" if transposed else "ConvBnAct2d"
        channels = weight.shape[:2] if transposed else weight.shape[1::-1]
        say(
            "conv_bn_act",
            "PyTorch's own operators" if own else "this library's kernels",
            f"{work / 1e6:.3g} million multiply-adds, {taps} taps",
            f"genkernels.nn.{layer}({channels[0]}, {channels[1]}, {tuple(weight.shape[2:])}, {stride})"
            f"(torch.randn({list(x.shape)}))",
        )
    return own
