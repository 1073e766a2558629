"""The short way of a call that has come before: its checks, its plan and its strides are kept by its shapes.

At small sizes everything around the kernel takes longer than the kernel. A call of dense CPU tensors that nobody looks
on (``ops/direct.py``) and whose like has passed the checks once goes from here straight to the native kernel, and so
does its first derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..masked_conv import cpu
from ..masked_conv.derivatives import backward
from ..masked_conv.mask import MaskSpec
from .dispatch_bypass import is_open
from .layout import output_format
from .strides import strides_of

Key = tuple[Any, ...]
MOST_CALLS = 1024


def key_of(x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> Key | None:
    """What the checks and the plan depend on; None where the long way is to be taken."""
    if not weight.is_cpu:
        return None
    key = (x.shape, x.stride(), x.dtype, weight.shape, weight.stride(), weight.dtype, *options)
    if bias is None:
        return key
    return (*key, bias.shape, bias.stride(), bias.dtype) if bias.is_cpu else None


class Ready:
    """A call whose sizes, strides and plan are known."""

    def __init__(self, x: Tensor, weight: Tensor, spec: MaskSpec, dilation: tuple[int, int], activation: str) -> None:
        self.plan = cpu.plan_of(x.dtype, spec, dilation, activation)
        self.shape = (x.shape[0], weight.shape[0], *x.shape[2:])
        self.sizes = (x.shape[0], *x.shape[2:])
        self.dtype = x.dtype
        self.x_strides = strides_of(x)
        self.weight_strides = cpu._weight_strides(weight)
        self.layout = output_format(x, weight)
        self.y_strides = strides_of(torch.empty(self.shape, device="meta", memory_format=self.layout))
        self.relu = activation == "relu"
        self.options = (spec.mask_type, spec.channel_groups, spec.group_layout, dilation, activation)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.empty(self.shape, dtype=self.dtype, memory_format=self.layout)
        done = self.plan.forward(
            threads=torch.get_num_threads(),
            image=self.sizes,
            x=(x.data_ptr(), self.x_strides),
            weight=(weight.data_ptr(), self.weight_strides),
            bias=0 if bias is None else bias.data_ptr(),
            y=(y.data_ptr(), self.y_strides),
        )
        if not done:
            raise MemoryError("masked_conv2d: no memory for the kernel's scratch")
        return y

    def run_backward(
        self, grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None, needs: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        grad_output = grad_output.contiguous(memory_format=self.layout)
        grad_x = torch.empty_like(x) if needs[0] else None
        grad_weight = torch.empty_like(weight) if needs[1] else None
        grad_bias = torch.empty(weight.shape[0], dtype=self.dtype) if needs[2] else None
        done = self.plan.backward(
            threads=torch.get_num_threads(),
            image=self.sizes,
            grad_y=(grad_output.data_ptr(), self.y_strides),
            x=(x.data_ptr(), self.x_strides),
            y=cpu.NO_TENSOR if output is None else (output.data_ptr(), self.y_strides),
            weight=(weight.data_ptr(), self.weight_strides),
            grad_x=cpu.NO_TENSOR if grad_x is None else (grad_x.data_ptr(), self.x_strides),
            grad_weight=cpu.NO_WEIGHT if grad_weight is None else (grad_weight.data_ptr(), self.weight_strides),
            grad_bias=0 if grad_bias is None else grad_bias.data_ptr(),
        )
        if not done:
            raise MemoryError("masked_conv2d: no memory for the backward kernel's scratch")
        return grad_x, grad_weight, grad_bias

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and (
            weight.requires_grad or x.requires_grad or (bias is not None and bias.requires_grad)
        ):
            return _apply(self, x, weight, bias)
        return self.run(x, weight, bias)


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ready: Ready, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = ready.run(x, weight, bias)
        ctx.set_materialize_grads(False)
        if ready.relu:
            ctx.save_for_backward(x, weight, y)
        else:
            ctx.save_for_backward(x, weight)
        ctx.ready = ready
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> Any:
        if grad_output is None:
            return None, None, None, None
        x, weight, *output = ctx.saved_tensors
        y, needs = output[0] if output else None, ctx.needs_input_grad[1:]
        if not torch.is_grad_enabled() and is_open(grad_output):
            return (None, *ctx.ready.run_backward(grad_output, x, weight, y, needs))
        grads = backward(grad_output, x, weight, y, *ctx.ready.options, needs)
        return (None, *(grad if need else None for grad, need in zip(grads, needs, strict=True)))


# Not _Recorded.apply: on top of this it looks for transforms, of which there are none here.
_apply = super(torch.autograd.Function, _Recorded).apply


def worth_keeping(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a call that has passed the checks is one of dense tensors, whose layouts leave nothing open."""
    if x.dim() != 4 or x.numel() == 0 or weight.numel() == 0 or not (_is_dense(x) and _is_dense(weight)):
        return False
    height, width = x.shape[2:]
    alone = x.shape[1] > 1 and width > 1 and height * width > 1  # in no other layout too
    return alone and cpu._weight_strides(weight) is not None and (bias is None or bias.is_contiguous())


def _is_dense(t: Tensor) -> bool:
    return t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last)
