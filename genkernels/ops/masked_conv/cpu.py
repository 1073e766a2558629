"""The native CPU kernels of the masked convolution: layout and allocation around ``_C.MaskedConvPlan``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ... import backends
from ..core.layout import empty_gradients, empty_output
from ..core.strides import channels_adjoin, strides_of
from .mask import MaskSpec

_STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NO_TENSOR, NO_WEIGHT = (0, (0, 0, 0, 0)), (0, (0, 0, 0))  # addresses and strides of what is not there


def why_not(x: Tensor) -> str | None:
    """The reason why the native kernel cannot take x, or None where it can."""
    if backends.native() is None:
        return "the native extension is not loaded"
    if x.dtype not in _STORAGE:
        return f"no native kernel for {x.dtype}"
    return None


@lru_cache(maxsize=256)
def plan_of(dtype: torch.dtype, spec: MaskSpec, dilation: tuple[int, int], activation: str) -> Any:
    """The native description of a layer, channels sorted by colour group."""

    def in_order_of(group: list[int]) -> tuple[list[int], list[int]]:
        order = sorted(range(len(group)), key=lambda c: group[c])  # stable: in place for blocks
        return order, [group[c] for c in order]

    in_order, in_group = in_order_of(spec.in_groups())
    out_order, out_group = in_order_of(spec.out_groups())
    centre_end = [sum(spec.centre_is_live(o, i) for i in in_group) for o in out_group]
    centre_begin = [sum(not spec.centre_is_live(o, i) for o in out_group) for i in in_group]
    in_place = spec.group_layout == "blocks"
    return backends.require_native().MaskedConvPlan(
        storage=_STORAGE[dtype],
        kernel=spec.kernel,
        dilation=dilation,
        centre_end=centre_end,
        centre_begin=centre_begin,
        in_order=[] if in_place else in_order,
        out_order=[] if in_place else out_order,
        relu=activation == "relu",
    )


def readable(t: Tensor) -> Tensor:
    """t itself where the kernel can walk its strides (innermost W or C, pixels evenly spaced), else a copy."""
    strides = strides_of(t)
    return t if 1 in (strides[1], strides[3]) else t.contiguous()


def _weight_strides(weight: Tensor) -> tuple[int, int, int] | None:
    """(out, in, tap) where all taps stand at one distance, else None."""
    out, inner, row, tap = strides_of(weight)
    width = weight.shape[3]
    if width == 1:
        return (out, inner, row)
    return (out, inner, tap) if row == tap * width else None


def _tensor(t: Tensor | None) -> tuple[int, tuple[int, ...]]:
    return NO_TENSOR if t is None else (t.data_ptr(), strides_of(t))


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: MaskSpec, dilation: tuple[int, int], activation: str
) -> Tensor:
    y = empty_output(x, weight)
    if y.numel() > 0:
        forward_into(y, x, weight, bias, spec, dilation, activation)
    return y


def forward_into(
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: MaskSpec,
    dilation: tuple[int, int],
    activation: str,
) -> None:
    """The result written to y, [N, O, H, W] with pixels, of any strides."""
    x = readable(x)
    weight_strides = _weight_strides(weight)
    if weight_strides is None:
        weight = weight.contiguous()
        weight_strides = _weight_strides(weight)
    bias = None if bias is None else bias.contiguous()
    done = plan_of(x.dtype, spec, dilation, activation).forward(
        threads=torch.get_num_threads(),
        image=(x.shape[0], x.shape[2], x.shape[3]),
        x=_tensor(x),
        weight=(weight.data_ptr(), weight_strides),
        bias=0 if bias is None else bias.data_ptr(),
        y=_tensor(y),
    )
    if not done:
        raise MemoryError("masked_conv2d: no memory for the kernel's scratch")


def backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    output: Tensor | None,
    spec: MaskSpec,
    dilation: tuple[int, int],
    activation: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight, grad_bias = empty_gradients(x, weight, needs)
    if x.numel() == 0:
        return grad_x, grad_weight.zero_(), grad_bias.zero_()
    grads = [grad if need else None for grad, need in zip((grad_x, grad_weight, grad_bias), needs, strict=True)]
    backward_into(grads, grad_output, x, weight, output, spec, dilation, activation)
    return grad_x, grad_weight, grad_bias


def backward_into(
    grads: Sequence[Tensor | None],
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    output: Tensor | None,
    spec: MaskSpec,
    dilation: tuple[int, int],
    activation: str,
) -> None:
    """The gradients written to those of (grad_x, grad_weight, grad_bias) that are there; x has pixels."""
    grad_x, grad_weight, grad_bias = grads
    x = readable(x)
    if activation == "relu":
        assert output is not None
        output = readable(output)
        grad_output = _like_layout(readable(grad_output), output)
    else:
        output, grad_output = None, readable(grad_output)
    weight_strides = _weight_strides(weight)
    if weight_strides is None:
        weight = weight.contiguous()
        weight_strides = _weight_strides(weight)
    target = grad_weight
    if target is not None and _weight_strides(target) is None:
        target = torch.empty(weight.shape, dtype=weight.dtype)
    done = plan_of(x.dtype, spec, dilation, activation).backward(
        threads=torch.get_num_threads(),
        image=(x.shape[0], x.shape[2], x.shape[3]),
        grad_y=_tensor(grad_output),
        x=_tensor(x),
        y=_tensor(output),
        weight=(weight.data_ptr(), weight_strides),
        grad_x=_tensor(grad_x),
        grad_weight=NO_WEIGHT if target is None else (target.data_ptr(), _weight_strides(target)),
        grad_bias=0 if grad_bias is None else grad_bias.data_ptr(),
    )
    if not done:
        raise MemoryError("masked_conv2d: no memory for the backward kernel's scratch")
    if target is not None and grad_weight is not None and target is not grad_weight:
        grad_weight.copy_(target)


def _like_layout(t: Tensor, other: Tensor) -> Tensor:
    """t in the kind of layout of other: both innermost along C, or both along W."""
    last = channels_adjoin(other)
    if channels_adjoin(t) == last:
        return t
    return t.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
