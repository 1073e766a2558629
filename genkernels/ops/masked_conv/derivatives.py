"""Derivatives of the masked convolution and of its gated form, first and higher, backward and forward mode.

With g = grad_y * act'(y), F the bare convolution, I its input gradient and W its weight gradient, all bilinear:

    y = act(F(x, w) + b),   grad_x = I(g, w),   grad_w = W(x, g),   grad_b = sum(g)

so every derivative of the two operators is written with the same two operators.

Behind a gate, features = F(x, w) + b + addend are linear in everything, so the derivatives are those of the masked
convolution behind those of the gate; features is an output with a derivative of its own, by which higher ones find
their way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.differentiable_op import DifferentiableOp, WithNeeds, with_needs
from ..core.layout import empty_output
from .reference import through_gate
from .schema import GatedOptions, Options, backward_op, forward_op, gate_backward_op, gated_op, library

_Tensors = tuple[Tensor | None, ...]


def _where_needed(grads: _Tensors, needs: tuple[bool, ...]) -> _Tensors:
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=False))


def bare_sum(
    first: tuple[Tensor | None, Tensor], second: tuple[Tensor, Tensor | None], bias: Tensor | None, options: Options
) -> Tensor | None:
    """F(first) + F(second) + bias, terms with a None left out; None where nothing is left."""
    linear = options.linear()
    terms = [forward(*pair, None, *linear) for pair in (first, second) if pair[0] is not None and pair[1] is not None]
    if bias is not None:
        shape = (second[0].shape[0], bias.shape[0], *second[0].shape[2:])
        terms.append(bias.view(1, -1, 1, 1).expand(shape))
    return sum(terms[1:], terms[0]) if terms else None


# --- masked_conv2d -------------------------------------------------------------------------------------------------


def _save_forward(ctx: Any, tensors: tuple[Any, ...], options: Options, output: Tensor) -> _Tensors:
    x, weight, _ = tensors
    return x, weight, output if options.activation == "relu" else None


def _backward_formula(ctx: Any, needs: tuple[bool, ...], grad_output: Tensor | None) -> _Tensors:
    if grad_output is None:
        return ()
    return _where_needed(backward(grad_output, *ctx.saved_tensors, *ctx.options, needs[:3]), needs)


def _forward_jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None, *_: None) -> Tensor:
    x, weight, y = ctx.saved_tensors
    dy = bare_sum((dx, weight), (x, dw), db, ctx.options)
    if dy is None:
        dy = torch.zeros_like(empty_output(x, weight))
    return dy if y is None else dy * (y > 0)


# --- masked_conv2d_backward ----------------------------------------------------------------------------------------


def _save_backward(ctx: Any, tensors: _Tensors, options: WithNeeds, output: tuple[Tensor, ...]) -> _Tensors:
    return tensors


def _slope(options: Options, grad_output: Tensor, y: Any) -> Any:
    return (y > 0).to(grad_output.dtype) if options.activation == "relu" else 1


def _double_backward_formula(
    ctx: Any, needs: tuple[bool, ...], of_grad_x: Tensor | None, of_grad_w: Tensor | None, of_grad_b: Tensor | None
) -> _Tensors:
    grad_output, x, weight, y = ctx.saved_tensors
    options, computed = ctx.options
    vx, vw, vb = _where_needed((of_grad_x, of_grad_w, of_grad_b), computed)
    slope, linear = _slope(options, grad_output, y), options.linear()
    g = grad_output * slope
    to_grad_output = to_x = to_weight = None
    if needs[0]:
        total = bare_sum((vx, weight), (x, vw), vb, linear)
        to_grad_output = None if total is None else total * slope
    if needs[1] and vw is not None:
        to_x = backward(g, x, vw, None, *linear, [True, False, False])[0]
    if needs[2] and vx is not None:
        to_weight = backward(g, vx, weight, None, *linear, [False, True, False])[1]
    return to_grad_output, to_x, to_weight


def _backward_jvp(ctx: Any, dgrad: Tensor | None, dx: Tensor | None, dw: Tensor | None, *_: None) -> _Tensors:
    grad_output, x, weight, y = ctx.saved_tensors
    options, computed = ctx.options
    slope, linear = _slope(options, grad_output, y), options.linear()
    g = grad_output * slope
    dg = None if dgrad is None else dgrad * slope
    first: _Tensors = (None, None, None)
    if dg is not None:
        first = _where_needed(backward(dg, x, weight, None, *linear, computed), computed)
    second: list[Tensor | None] = [None, None, None]
    if computed[0] and dw is not None:
        second[0] = backward(g, x, dw, None, *linear, [True, False, False])[0]
    if computed[1] and dx is not None:
        second[1] = backward(g, dx, weight, None, *linear, [False, True, False])[1]
    shapes = (x.shape, weight.shape, weight.shape[:1])
    result = []
    for a, b, shape, need in zip(first, second, shapes, computed, strict=True):
        terms = [t for t in (a, b) if t is not None]
        result.append(sum(terms[1:], terms[0]) if terms else x.new_zeros(shape if need else 0))
    return tuple(result)


# --- masked_conv2d_gated -------------------------------------------------------------------------------------------


def _save_gated(ctx: Any, tensors: tuple[Any, ...], options: GatedOptions, output: tuple[Tensor, Tensor]) -> _Tensors:
    x, weight, _, _ = tensors
    _, features = output
    return x, weight, features


def _gated_backward_formula(
    ctx: Any, needs: tuple[bool, ...], grad_output: Tensor | None, grad_features: Tensor | None
) -> _Tensors:
    x, weight, features = ctx.saved_tensors
    g, sums = grad_features, None
    if grad_output is not None and grad_features is None and not torch.is_grad_enabled():
        g, sums = gate_backward_op(grad_output, features, needs[2])
    elif grad_output is not None:
        g = through_gate(grad_output, features)
        g = g if grad_features is None else g + grad_features
    if g is None:
        return ()
    if needs[2] and sums is None:
        sums = g.sum((0, 2, 3))
    wanted = [needs[0], needs[1], False]
    grad_x, grad_weight, _ = (
        backward(g, x, weight, None, *ctx.options.convolution(), wanted) if any(wanted) else (None,) * 3
    )
    return _where_needed((grad_x, grad_weight, sums, g), needs)


def _gated_jvp(
    ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None, dadd: Tensor | None, *_: None
) -> tuple[Tensor, Tensor]:
    x, weight, features = ctx.saved_tensors
    total = bare_sum((dx, weight), (x, dw), db, ctx.options.convolution())
    change = dadd if total is None else total if dadd is None else total + dadd
    change = torch.zeros_like(features) if change is None else change
    a, b = features.chunk(2, 1)
    a, b = torch.tanh(a), torch.sigmoid(b)
    da, db_ = change.chunk(2, 1)
    return b * (1 - a * a) * da + a * b * (1 - b) * db_, change


forward = DifferentiableOp(
    library,
    forward_op,
    options=Options,
    setup_context=_save_forward,
    backward=_backward_formula,
    jvp=_forward_jvp,
    foldable=True,
)
backward = DifferentiableOp(
    library,
    backward_op,
    options=with_needs(Options),
    setup_context=_save_backward,
    backward=_double_backward_formula,
    jvp=_backward_jvp,
    foldable=False,
)
gated = DifferentiableOp(
    library,
    gated_op,
    options=GatedOptions,
    setup_context=_save_gated,
    backward=_gated_backward_formula,
    jvp=_gated_jvp,
    foldable=False,
)
