"""The short way of a call that has come before: its checks, its plan and its strides are kept by its shapes.

At small sizes everything around the kernel takes longer than the kernel. A call of contiguous CPU tensors that nobody
looks on (``ops/direct.py``) and whose like has passed the checks once goes from here straight to the native kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import cpu
from .derivatives import backward
from .mask import MaskSpec

Key = tuple[Any, ...]
MOST_CALLS = 1024


def key_of(x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> Key | None:
    """What the checks and the strides depend on; None where the long way is to be taken."""
    if x.dim() != 4 or not (x.is_contiguous() and weight.is_contiguous() and weight.is_cpu):
        return None
    if bias is None:
        return (x.shape, x.dtype, weight.shape, weight.dtype, None, *options)
    if not (bias.is_cpu and bias.is_contiguous()):
        return None
    return (x.shape, x.dtype, weight.shape, weight.dtype, (bias.shape, bias.dtype), *options)


class Ready:
    """A forward call whose sizes, strides and plan are known."""

    def __init__(self, x: Tensor, weight: Tensor, spec: MaskSpec, dilation: tuple[int, int], activation: str) -> None:
        self.plan = cpu._plan(spec, dilation)
        self.storage = cpu._STORAGE[x.dtype]
        self.shape = (x.shape[0], weight.shape[0], *x.shape[2:])
        self.sizes = (x.shape[0], *x.shape[2:])
        self.dtype = x.dtype
        self.x_strides = cpu._image_strides(x)
        self.weight_strides = cpu._weight_strides(weight)
        self.y_strides = cpu._image_strides(torch.empty(self.shape, device="meta"))
        self.relu = activation == "relu"
        self.options = (spec.mask_type, spec.channel_groups, spec.group_layout, dilation, activation)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.empty(self.shape, dtype=self.dtype)
        done = self.plan.forward(
            self.storage, torch.get_num_threads(), self.sizes, x.data_ptr(), self.x_strides, weight.data_ptr(),
            self.weight_strides, 0 if bias is None else bias.data_ptr(), self.relu, y.data_ptr(), self.y_strides,
        )  # fmt: skip
        if not done:
            raise MemoryError("masked_conv2d: no memory for the kernel's scratch")
        return y

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
        needs = ctx.needs_input_grad[1:]
        grads = backward(grad_output, x, weight, output[0] if output else None, *ctx.ready.options, needs)
        return (None, *(grad if need else None for grad, need in zip(grads, needs, strict=True)))


# Not _Recorded.apply: on top of this it looks for transforms, of which there are none here.
_apply = super(torch.autograd.Function, _Recorded).apply


def worth_keeping(x: Tensor, weight: Tensor) -> bool:
    """Whether x and its result are in no other layout too, which their strides alone would not tell."""
    height, width = x.shape[2:]
    return x.numel() > 0 and x.shape[1] > 1 and weight.shape[0] > 0 and width > 1 and height * width > 1
