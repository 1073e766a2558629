"""Memory layouts: channels_last in gives channels_last out; everything else gives contiguous."""

from __future__ import annotations

import torch
from torch import Tensor


def _is_channels_last(t: Tensor) -> bool:
    """Channels innermost in memory, slices included; False for a shape that fits both layouts."""
    return t.stride(1) == 1 and t.shape[1] > 1 and not t.is_contiguous()


def input_format(x: Tensor) -> torch.memory_format:
    """The layout of x, and so of its gradient."""
    return torch.channels_last if _is_channels_last(x) else torch.contiguous_format


def output_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """The layout of x; where x has one channel and so fits both, the layout of weight, as ``nn.Conv2d`` does."""
    if _is_channels_last(x) or (x.shape[1] == 1 and _is_channels_last(weight)):
        return torch.channels_last
    return torch.contiguous_format


def empty_output(x: Tensor, weight: Tensor) -> Tensor:
    """The result of a forward pass, [N, O, H, W], not yet written."""
    shape = (x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=output_format(x, weight))


def empty_grad_input(x: Tensor) -> Tensor:
    """The gradient of x, [N, C, H, W], not yet written."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=input_format(x))
