"""Where an accelerated layer does better with PyTorch's own convolution of the masked weight.

Measured on the CPU (Zen 3, ``bench/bench_sizes.py``): for a single image and less than some 0.4 million multiply-adds,
what surrounds the kernel takes longer than what it saves. With several images PyTorch's own loses from the start, and
the functions of ``genkernels.ops`` do as they are told and always run the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..conv_bn_act.choice import is_forced
from ..verbose import is_on, like, say
from .mask import MaskSpec

MULTIPLY_ADDS = 400_000


def prefers_torch(x: Tensor, weight: Tensor, bias: Tensor | None, spec: MaskSpec, dilation: tuple[int, int]) -> bool:
    """Whether PyTorch's own convolution is quicker; x is [N, C, H, W] or [C, H, W]."""
    if not x.is_cpu or (x.dim() == 4 and x.shape[0] != 1) or is_forced():
        return False
    work = x.numel() * spec.out_channels * spec.kernel[0] * spec.kernel[1]
    own = 0 < work < MULTIPLY_ADDS
    if own and is_on() and not torch.compiler.is_compiling():
        padding = tuple(k // 2 * d for k, d in zip(spec.kernel, dilation, strict=True))
        say(
            "masked_conv2d",
            "PyTorch's own operators",
            f"a single image, {work / 1e6:.3g} million multiply-adds",
            f"torch.nn.functional.conv2d({like(x)}, {like(weight)}, {like(bias)}, {padding=}, {dilation=})",
        )
    return own
