"""Which implementation the layers take: the kernels, or PyTorch's own operators where those are quicker.

Measured on the CPU (Zen 3, two threads, float32; 195 shapes, with and without batch norm, contiguous and channels_last,
evaluation and training; ``bench/sizes.py`` holds one of each kind). The kernels win where they do something that
PyTorch's do not: Winograd's form of 4x4 kernels by 2 (1.2 to 2 times), phases of a transposed convolution (1.0 to 2),
few outputs of one (1.3 to 2.5), weights that outweigh the images (1.05 to 2), the weight gradient of few input channels
(1.1 to 1.4). Elsewhere oneDNN's convolutions are as quick (0.85 to 1.1), above all channels_last; and below some 12
million multiply-adds what surrounds the kernels weighs more than they save. The functions of ``genkernels.ops`` do as
they are told and always run the kernel.

In a compiled, traced or exported program a layer or run is one operator whatever its size: a choice by size would be
made for the size at hand and hold the program to it (a guard), while a program may serve any batch. Little is lost, as
the surroundings are compiled away: small generators were as quick with the operator in training (0.84 to 1.03 times)
and 1.2 to 1.6 times as quick in evaluation (AVX-512, one thread, 4 to 32 features).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..core.device_choice import why_no_kernel
from ..core.layout import is_channels_last
from ..core.prepared_call import nothing_watches
from ..core.verbose import is_on, like, log_choice

# Measured crossovers, as the docstring says. Multiply-adds from which a kernel wins, and a kernel that does much around
# its products.
LEAST, LEAST_OF_MANY_STEPS = 12_000_000, 24_000_000
SMALL_IMAGE = 64  # pixels: below, weights of 64 x 64 channels and more outweigh them
# Of 4x4 kernels by 2 with 64 channels and more, on images of 16 pixels and more: the pixels of the batch from which the
# kernel wins. The native core takes Winograd's form there, whose weights are transformed for each call: so many pixels
# must share them. (Its own condition is in csrc/cpu/conv_bn_act/winograd.cpp; a test holds the two together.)
WINOGRAD_CHANNELS, WINOGRAD_IMAGE = 64, 16
WINOGRAD_PIXELS = {"contiguous": 32, "channels_last, gradients": 64, "channels_last, transposed": 128,
                   "channels_last, strided": 16}  # fmt: skip
OWN = "PyTorch's own operators"
LEAST_NORMED = 32_768  # values that an instance norm has to have for its kernel to win in training
_ALWAYS_KERNEL = ContextVar("always_kernel", default=False)  # of a thread: others go on choosing


@contextmanager
def always_kernel() -> Iterator[None]:
    """Takes the kernel at every size: for tests, and for proofs on small images."""
    token = _ALWAYS_KERNEL.set(True)
    try:
        yield
    finally:
        _ALWAYS_KERNEL.reset(token)


def always_takes_kernel() -> bool:
    return _ALWAYS_KERNEL.get()


def prefers_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Any, norm: Any, activation: str | None, negative_slope: float
) -> bool:
    """Whether PyTorch's own operators are quicker for a call.

    Args:
        x: [N, C, H, W], not empty.
        weight, bias: of the convolution, read once by the caller: where a parametrization computes them, each look at
            ``conv.weight`` would do so again.
        conv: an ``nn.ConvTranspose2d`` or ``nn.Conv2d``.
        norm: the batch norm after it, or None.
        activation, negative_slope: what follows.
    """
    if _serves_any_size() or always_takes_kernel():
        return False
    own = (x.is_cpu and not _kernel_wins(x, weight, conv)) or why_no_kernel(x) is not None
    if own and is_on():  # what the operators run, they say themselves
        gradients = "gradients" if _trains(x, weight) else "no gradients"
        size = describe(x, _multiply_adds(x, conv), math.prod(conv.kernel_size))
        line = _line(x, weight, bias, conv, norm, activation, negative_slope)
        log_choice("conv_bn_act", OWN, why_no_kernel(x) or f"{size}, {gradients}", line)
    return own


def describe(x: Tensor, work: int, taps: int) -> str:
    """What decides how long a call takes."""
    layout = "channels_last" if is_channels_last(x) else "contiguous"
    return f"{work / 1e6:.3g} million multiply-adds, {taps} taps, {layout}"


def has_instance_norm(norm: Any, x: Tensor) -> bool:
    """Whether the kernel of instance norm and activation is for a call of ``nn.InstanceNorm2d`` on what x becomes."""
    return not norm.track_running_stats and (_serves_any_size() or always_takes_kernel() or why_no_kernel(x) is None)


def prefers_torch_norm(x: Tensor, weight: Tensor | None) -> bool:
    """Whether PyTorch's own instance norm and activation are quicker than the kernel: small ones with gradients.

    Measured on the CPU (Zen 3, two threads, float32): with gradients, 48 to 16,384 values take 0.86 to 1.08 times as
    long in PyTorch, from 32,768 on 1.1 to 2.4 times; without them the kernel is quicker at every size (1.2 to 5).
    What the operator would refuse, or takes and PyTorch does not, is left to it.
    """
    if _serves_any_size() or always_takes_kernel() or x.dim() != 4 or not 0 < x.numel() < LEAST_NORMED:
        return False
    if x.shape[2] * x.shape[3] == 1:
        return False
    if weight is not None and (weight.dtype != x.dtype or weight.device != x.device or len(weight) != x.shape[1]):
        return False
    return x.is_cpu and torch.is_grad_enabled() and (x.requires_grad or (weight is not None and weight.requires_grad))


def _serves_any_size() -> bool:
    """Whether a call is compiled or traced, and so made for other sizes too, with gradients and without."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_settled(x: Any) -> bool:
    """Whether the choice for an input on the CPU hangs on its size alone where that is tiny."""
    return nothing_watches(x) and not always_takes_kernel() and not is_on()


def is_tiny(x: Tensor, conv: Any) -> bool:
    """Whether PyTorch's own operators are quicker whatever else the call is."""
    return x.dim() == 4 and _multiply_adds(x, conv) < LEAST


def _multiply_adds(x: Tensor, conv: Any) -> int:
    count, channels, height, width = x.shape
    vertical, horizontal = conv.kernel_size
    work = count * channels * height * width * conv.out_channels * vertical * horizontal
    if conv.transposed:
        return work
    down, right = conv.stride
    return work // (down * right)


def _trains(x: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def _kernel_wins(x: Tensor, weight: Tensor, conv: Any) -> bool:
    work = _multiply_adds(x, conv)
    if work < LEAST:
        return False
    height, width = x.shape[2:]
    pixels = height * width  # of the low image
    if not conv.transposed:
        pixels //= conv.stride[0] * conv.stride[1]
    if conv.kernel_size == (1, 1) and pixels > 1:
        return False
    if x.dtype != torch.float32:
        return True  # PyTorch converts, or takes its slow way
    trains, channels_last = _trains(x, weight), is_channels_last(x)
    inputs, outputs = conv.in_channels, conv.out_channels
    fewest, strided = min(inputs, outputs), conv.stride != (1, 1)
    is_4x4_by_2 = conv.kernel_size == (4, 4) and conv.stride == (2, 2)
    if is_4x4_by_2 and fewest >= WINOGRAD_CHANNELS and pixels >= WINOGRAD_IMAGE:
        mode = "gradients" if trains else "transposed" if conv.transposed else "strided"
        least = WINOGRAD_PIXELS[f"channels_last, {mode}" if channels_last else "contiguous"]
        return work >= LEAST_OF_MANY_STEPS and x.shape[0] * pixels >= least
    if conv.transposed and outputs < 8:
        return not trains or work >= LEAST_OF_MANY_STEPS
    if fewest >= 64 and pixels <= SMALL_IMAGE:
        return True
    if channels_last:
        return fewest >= 128 and strided
    if fewest >= 128 or (conv.transposed and strided):
        return True
    return inputs < 16 and strided and trains


def _line(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: Any, norm: Any, activation: str | None, negative_slope: float
) -> str:
    """The same call as one layer of this library's."""
    transposed = conv.transposed
    sizes: list[Any] = [conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding]
    sizes += [conv.output_padding] if transposed else []
    options: dict[str, Any] = {"bias": bias is not None, "batch_norm": norm is not None, "activation": activation}
    if activation == "leaky_relu":
        options["negative_slope"] = negative_slope
    options |= {"device": str(weight.device), "dtype": weight.dtype}
    arguments = [*(str(size) for size in sizes), *(f"{name}={value!r}" for name, value in options.items())]
    evaluation = ".eval()" if norm is not None and not norm.training else ""
    layer = "ConvTransposeBnAct2d" if transposed else "ConvBnAct2d"
    return f"genkernels.nn.{layer}({', '.join(arguments)}){evaluation}({like(x)})"
