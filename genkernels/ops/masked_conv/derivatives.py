"""Derivatives of the masked convolution, first and higher, backward and forward mode.

With g = grad_y * act'(y), F the bare convolution, I its input gradient and W its weight gradient, all bilinear:

    y = act(F(x, w) + b),   grad_x = I(g, w),   grad_w = W(x, g),   grad_b = sum(g)

so every derivative of the two operators is written with the same two operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.differentiable_op import DifferentiableOp
from ..core.layout import empty_output
from .schema import backward_op, forward_op, library

_Tensors = tuple[Tensor | None, ...]


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> _Tensors:
    x, weight, _, *ctx.options = inputs
    return x, weight, output if ctx.options[-1] == "relu" else None


def _backward_formula(ctx: Any, needs: tuple[bool, ...], grad_output: Tensor | None) -> _Tensors:
    if grad_output is None:
        return (None,) * 8
    grads = backward(grad_output, *ctx.saved_tensors, *ctx.options, needs[:3])
    return (*(grad if need else None for grad, need in zip(grads, needs[:3], strict=True)), *[None] * 5)


def _forward_jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None, *_: None) -> Tensor:
    x, weight, y = ctx.saved_tensors
    dy = bare_sum((dx, weight), (x, dw), db, [*ctx.options[:-1], "none"])
    if dy is None:
        dy = torch.zeros_like(empty_output(x, weight))
    return dy if y is None else dy * (y > 0)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> _Tensors:
    *tensors, mask_type, channel_groups, group_layout, dilation, ctx.activation, ctx.computed = inputs
    ctx.options = [mask_type, channel_groups, group_layout, dilation, "none"]  # past the activation all is linear
    return tuple(tensors)


def _double_backward_formula(
    ctx: Any, needs: tuple[bool, ...], of_grad_x: Tensor | None, of_grad_w: Tensor | None, of_grad_b: Tensor | None
) -> _Tensors:
    grad_output, x, weight, y = ctx.saved_tensors
    vx, vw, vb = (v if done else None for v, done in zip((of_grad_x, of_grad_w, of_grad_b), ctx.computed, strict=True))
    slope = (y > 0).to(grad_output.dtype) if ctx.activation == "relu" else 1
    g = grad_output * slope
    to_grad_output = to_x = to_weight = None
    if needs[0]:
        total = bare_sum((vx, weight), (x, vw), vb, ctx.options)
        to_grad_output = None if total is None else total * slope
    if needs[1] and vw is not None:
        to_x = backward(g, x, vw, None, *ctx.options, [True, False, False])[0]
    if needs[2] and vx is not None:
        to_weight = backward(g, vx, weight, None, *ctx.options, [False, True, False])[1]
    return (to_grad_output, to_x, to_weight, *[None] * 7)


def _backward_jvp(ctx: Any, dgrad: Tensor | None, dx: Tensor | None, dw: Tensor | None, *_: None) -> _Tensors:
    grad_output, x, weight, y = ctx.saved_tensors
    slope = (y > 0).to(grad_output.dtype) if ctx.activation == "relu" else 1
    g = grad_output * slope
    dg = None if dgrad is None else dgrad * slope
    first: list[Tensor | None] = [None, None, None]
    if dg is not None:
        done = backward(dg, x, weight, None, *ctx.options, ctx.computed)
        first = [part if need else None for part, need in zip(done, ctx.computed, strict=True)]
    second: list[Tensor | None] = [None, None, None]
    if ctx.computed[0] and dw is not None:
        second[0] = backward(g, x, dw, None, *ctx.options, [True, False, False])[0]
    if ctx.computed[1] and dx is not None:
        second[1] = backward(g, dx, weight, None, *ctx.options, [False, True, False])[1]
    shapes = (x.shape, weight.shape, weight.shape[:1])
    result = []
    for a, b, shape, need in zip(first, second, shapes, ctx.computed, strict=True):
        terms = [t for t in (a, b) if t is not None]
        result.append(sum(terms[1:], terms[0]) if terms else x.new_zeros(shape if need else 0))
    return tuple(result)


def bare_sum(
    first: tuple[Tensor | None, Tensor], second: tuple[Tensor, Tensor | None], bias: Tensor | None, options: list[Any]
) -> Tensor | None:
    """F(first) + F(second) + bias, terms with a None left out; None where nothing is left."""
    terms = [forward(*pair, None, *options) for pair in (first, second) if pair[0] is not None and pair[1] is not None]
    if bias is not None:
        shape = (second[0].shape[0], bias.shape[0], *second[0].shape[2:])
        terms.append(bias.view(1, -1, 1, 1).expand(shape))
    return sum(terms[1:], terms[0]) if terms else None


forward = DifferentiableOp(
    library,
    forward_op,
    setup_context=_save_forward,
    backward=_backward_formula,
    jvp=_forward_jvp,
    foldable=True,
)
backward = DifferentiableOp(
    library,
    backward_op,
    setup_context=_save_backward,
    backward=_double_backward_formula,
    jvp=_backward_jvp,
    foldable=False,
)
