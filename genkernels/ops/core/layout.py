"""Memory layouts: channels_last in gives channels_last out; everything else gives contiguous."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_channels_last(t: Tensor) -> bool:
    """Whether the strides of t [N, C, H, W] say channels_last, slices included.

    PyTorch's own rule (``suggest_memory_format``), which settles shapes that are dense in both layouts, one channel
    above all, by the strides of their single dimensions.
    """
    if _plainly_contiguous(t):
        return False
    least = 0
    for dim in (1, 3, 2, 0):
        size, stride = t.shape[dim], t.stride(dim)
        if size == 0 or stride < least or (dim == 1 and stride == 0) or (dim == 0 and least == t.stride(1)):
            return False
        least = stride * size if size > 1 else stride
    return True


def _plainly_contiguous(t: Tensor) -> bool:
    """The usual case, told at once: contiguous, with several channels and pixels, so in no other layout too."""
    return t.is_contiguous() and t.shape[1] > 1 and t.shape[2] * t.shape[3] > 1


def input_format(x: Tensor) -> torch.memory_format:
    """The layout of x, and so of its gradient."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def output_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """The layout of x; where x has one channel and so fits both, either of x and weight can ask for channels_last."""
    if is_channels_last(x) or (x.shape[1] == 1 and is_channels_last(weight)):
        return torch.channels_last
    return torch.contiguous_format


def empty_output(x: Tensor, weight: Tensor) -> Tensor:
    """The result of a forward pass, [N, O, H, W], not yet written."""
    shape = (x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=output_format(x, weight))


def empty_grad_input(x: Tensor) -> Tensor:
    """The gradient of x, [N, C, H, W], not yet written."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=input_format(x))


def empty_gradients(x: Tensor, weight: Tensor, needs: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias [O], not yet written; those that are not needed have no elements."""
    return (
        empty_grad_input(x) if needs[0] else x.new_empty(0),
        torch.empty_like(weight) if needs[1] else x.new_empty(0),
        x.new_empty(weight.shape[0]) if needs[2] else x.new_empty(0),
    )
