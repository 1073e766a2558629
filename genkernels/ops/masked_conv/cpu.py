"""The native CPU kernels of the masked convolution: layout and allocation around ``_C.MaskedConvPlan``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ... import backends
from ..core.dtypes import STORAGE
from ..core.layout import empty_gradients, empty_output, output_format
from ..core.strides import channels_adjoin, readable, strides_of, weight_strides
from .mask import MaskSpec

_NO_TENSOR, _NO_WEIGHT = (0, (0, 0, 0, 0)), (0, (0, 0, 0))  # addresses and strides of what is not there


@lru_cache(maxsize=256)
def _plan(dtype: torch.dtype, spec: MaskSpec, dilation: tuple[int, int], activation: str) -> Any:
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
        storage=STORAGE[dtype],
        kernel=spec.kernel,
        dilation=dilation,
        centre_end=centre_end,
        centre_begin=centre_begin,
        in_order=[] if in_place else in_order,
        out_order=[] if in_place else out_order,
        relu=activation == "relu",
    )


class Launcher:
    """The native calls for tensors of settled sizes and strides, between which addresses alone differ.

    Attributes:
        plan: a ``_C.MaskedConvPlan``.
        image: N, H, W.
        x, weight, y, grad_y, grad_x, grad_weight: strides; those of gradients are those of what they belong to, unless
            the caller says otherwise.
        shape, dtype, layout: of the results that it allocates: contiguous or channels_last.
    """

    def __init__(
        self, x: Tensor, weight: Tensor, y: Tensor, spec: MaskSpec, dilation: tuple[int, int], activation: str,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:  # fmt: skip
        self.plan = _plan(x.dtype, spec, dilation, activation)
        self.image = (x.shape[0], x.shape[2], x.shape[3])
        self.shape, self.dtype, self.layout = (x.shape[0], weight.shape[0], *x.shape[2:]), x.dtype, layout
        self.x = self.grad_x = strides_of(x)
        self.weight = self.grad_weight = weight_strides(weight)
        self.y = self.grad_y = strides_of(y)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor | None = None) -> Tensor:
        """As the operator; or into y."""
        if y is None:
            y = torch.empty(self.shape, dtype=self.dtype, memory_format=self.layout)
        done = self.plan.forward(
            threads=torch.get_num_threads(),
            image=self.image,
            x=(x.data_ptr(), self.x),
            weight=(weight.data_ptr(), self.weight),
            bias=0 if bias is None else bias.data_ptr(),
            y=(y.data_ptr(), self.y),
        )
        if not done:
            raise MemoryError("masked_conv2d: no memory for the kernel's scratch")
        return y

    def backward(
        self, grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None, needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """As the backward operator, of tensors laid out as settled; None for what is not needed."""
        grads = (
            torch.empty_like(x) if needs[0] else None,
            torch.empty_like(weight) if needs[1] else None,
            torch.empty(weight.shape[0], dtype=self.dtype) if needs[2] else None,
        )
        self.backward_into(grads, grad_output.contiguous(memory_format=self.layout), x, weight, output)
        return grads

    def backward_into(
        self, grads: Sequence[Tensor | None], grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None
    ) -> None:
        grad_x, grad_weight, grad_bias = grads
        done = self.plan.backward(
            threads=torch.get_num_threads(),
            image=self.image,
            grad_y=(grad_output.data_ptr(), self.grad_y),
            x=(x.data_ptr(), self.x),
            y=_NO_TENSOR if output is None else (output.data_ptr(), self.y),
            weight=(weight.data_ptr(), self.weight),
            grad_x=_NO_TENSOR if grad_x is None else (grad_x.data_ptr(), self.grad_x),
            grad_weight=_NO_WEIGHT if grad_weight is None else (grad_weight.data_ptr(), self.grad_weight),
            grad_bias=0 if grad_bias is None else grad_bias.data_ptr(),
        )
        if not done:
            raise MemoryError("masked_conv2d: no memory for the backward kernel's scratch")


def prepare(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: MaskSpec, dilation: tuple[int, int], activation: str
) -> Launcher | None:
    """What runs calls of tensors laid out as these; None unless all are dense and each in one layout alone."""
    if x.dim() != 4 or x.numel() == 0 or weight.numel() == 0 or not (_is_dense(x) and _is_dense(weight)):
        return None
    height, width = x.shape[2:]
    in_one_layout = x.shape[1] > 1 and width > 1 and height * width > 1
    if not in_one_layout or weight_strides(weight) is None or not (bias is None or bias.is_contiguous()):
        return None
    layout = output_format(x, weight)
    y = torch.empty((x.shape[0], weight.shape[0], height, width), device="meta", memory_format=layout)
    return Launcher(x, weight, y, spec, dilation, activation, layout)


def _is_dense(t: Tensor) -> bool:
    return t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last)


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
    x, weight = readable(x), _with_even_taps(weight)
    bias = None if bias is None else bias.contiguous()
    Launcher(x, weight, y, spec, dilation, activation).forward(x, weight, bias, y)


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
    x, weight = readable(x), _with_even_taps(weight)
    if activation == "relu":
        assert output is not None
        output = readable(output)
        grad_output = _like_layout(readable(grad_output), output)
    else:
        output, grad_output = None, readable(grad_output)
    target = grad_weight
    if target is not None and weight_strides(target) is None:
        target = torch.empty(weight.shape, dtype=weight.dtype)
    launcher = Launcher(x, weight, grad_output, spec, dilation, activation)
    if output is not None:
        launcher.y = strides_of(output)
    if grad_x is not None:
        launcher.grad_x = strides_of(grad_x)
    if target is not None:
        launcher.grad_weight = weight_strides(target)
    launcher.backward_into((grad_x, target, grad_bias), grad_output, x, weight, output)
    if target is not None and grad_weight is not None and target is not grad_weight:
        grad_weight.copy_(target)


def _with_even_taps(weight: Tensor) -> Tensor:
    """The weight itself where its taps stand at one distance, else a copy."""
    return weight if weight_strides(weight) is not None else weight.contiguous()


def _like_layout(t: Tensor, other: Tensor) -> Tensor:
    """t in the kind of layout of other: both innermost along C, or both along W."""
    last = channels_adjoin(other)
    if channels_adjoin(t) == last:
        return t
    return t.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
