"""The strides that kernels are given: those of single dimensions are settled, whatever PyTorch has there.

In a dimension of size 1 a stride is never stepped by, so PyTorch lets it be anything: ``torch.randn(4, 8, 1,
9).transpose(2, 3)`` is contiguous with a last stride of 9. A kernel that asks of the strides which dimension is
innermost, or moves blocks along it, must not meet such a number. So no kernel is given ``Tensor.stride()``: all of them
get ``strides_of``, which is a function of the shape and of the strides that mean something.
"""

from __future__ import annotations

from torch import Tensor

_CHANNELS_LAST = (1, 3, 2, 0)  # innermost first


def strides_of(t: Tensor) -> tuple[int, ...]:
    """The strides of t, where its size is 1 what they would be if the dimensions around it were dense.

    Two dense tensors of one shape and one order in memory have the same ones. The order is channels_last where the
    channels of [N, C, H, W] are several and next to each other, else that of the dimensions; so an image of one channel
    is a plane, and one of one column too unless its channels adjoin.
    """
    shape, found = t.shape, t.stride()
    if 1 not in shape:
        return found
    settled = list(found)
    is_last = len(shape) == 4 and shape[1] > 1 and found[1] == 1
    inner = 1
    for dim in _CHANNELS_LAST if is_last else range(len(shape) - 1, -1, -1):
        if shape[dim] == 1:
            settled[dim] = inner
        inner = settled[dim] * shape[dim]
    return tuple(settled)


def channels_adjoin(t: Tensor) -> bool:
    """Whether the channels of t [N, C, H, W] are next to each other in memory; a single one where it is a pixel."""
    return strides_of(t)[1] == 1


def readable(t: Tensor) -> Tensor:
    """t itself where a kernel can walk its strides (innermost W or C, pixels evenly spaced), else a copy."""
    strides = strides_of(t)
    return t if 1 in (strides[1], strides[3]) else t.contiguous()


def weight_strides(weight: Tensor) -> tuple[int, int, int] | None:
    """(out, in, tap) of a weight [O, C, kh, kw] whose taps all stand at one distance, else None."""
    out, inner, row, tap = strides_of(weight)
    width = weight.shape[3]
    if width == 1:
        return (out, inner, row)
    return (out, inner, tap) if row == tap * width else None
