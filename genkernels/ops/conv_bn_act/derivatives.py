"""Derivatives of the operators, first and higher, backward and forward mode.

Without batch norm: with g = grad_y * act'(u), F the bare product, I its input gradient and W its weight gradient, all
bilinear,

    y = act(F(x, w) + b),   grad_x = I(g, w),   grad_w = W(x, g),   grad_b = sum(g)

and every derivative is written with the same two operators. The slope of tanh and sigmoid depends on y, which is an
input of the backward operator and so gets a gradient there.

With batch norm: backward computes B(g, inputs) = Jᵀ g. It is linear in g, so ∂B/∂g is J itself, which gives forward
mode; B is differentiated as the plain PyTorch of reference.py, which is exact, but slower than the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.activation import slope_at
from ..core.differentiable_op import DifferentiableOp, WithNeeds, with_needs
from ..core.dtypes import accumulator
from ..core.second_derivatives import sum_of_tangents, through_gradient
from . import reference
from .geometry import empty_output
from .schema import (
    NormOptions,
    Options,
    conv_act_backward_op,
    conv_act_op,
    conv_bn_act_backward_op,
    conv_bn_act_op,
    library,
)

_Tensors = tuple[Tensor | None, ...]


def _sum(terms: Sequence[Tensor | None]) -> Tensor | None:
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


def _channels(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(1, -1, 1, 1)


def _where_needed(grads: Sequence[Tensor | None], needs: Sequence[bool]) -> _Tensors:
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=False))


# --- conv_act: x, weight, scale, shift -----------------------------------------------------------------------------


def _save_conv_act(ctx: Any, tensors: _Tensors, options: Options, output: Tensor) -> _Tensors:
    x, weight, scale, shift = tensors
    ctx.shift_dtype = None if shift is None else shift.dtype
    return x, weight, scale, output if options.activation != "none" else None


def _backward_formula(ctx: Any, needs: tuple[bool, ...], grad_output: Tensor | None) -> _Tensors:
    if grad_output is None:
        return ()
    x, weight, scale, y = ctx.saved_tensors
    factor = None if scale is None else ctx.options.geometry().per_output(scale).to(weight.dtype)
    wanted = [needs[0], needs[1] or needs[2], needs[3]]
    # F(x, w) * scale = F(x, w * scale)
    scaled = weight if factor is None or not needs[0] else weight * factor
    to_x, to_weight, to_shift = conv_act_backward(grad_output, x, scaled, y, *ctx.options, wanted)
    to_scale = None
    if scale is not None and needs[2]:
        others = [0, 2, 3] if ctx.options.transposed else [1, 2, 3]
        to_scale = (to_weight * weight).to(accumulator(x.dtype)).sum(others).to(scale.dtype)
    return (
        to_x if needs[0] else None,
        (to_weight if factor is None else to_weight * factor) if needs[1] else None,
        to_scale,
        to_shift.to(ctx.shift_dtype) if needs[3] else None,
    )


def _conv_act_jvp(
    ctx: Any, dx: Tensor | None, dw: Tensor | None, dscale: Tensor | None, dshift: Tensor | None, *_: None
) -> Tensor:
    x, weight, scale, y = ctx.saved_tensors
    geometry = ctx.options.geometry()
    tangent = _bare_sum((dx, weight), (x, dw), None, ctx.options)
    if tangent is not None and scale is not None:
        tangent = tangent * _channels(scale, x)
    if dscale is not None:
        tangent = _sum([tangent, _bare(x, weight, ctx.options) * _channels(dscale, x)])
    if dshift is not None:
        tangent = _sum([tangent, _channels(dshift, x).expand(geometry.output_shape(x, weight))])
    if tangent is None:
        return torch.zeros_like(empty_output(x, weight, geometry))
    return tangent if y is None else tangent * slope_at(y, *ctx.options.act())


def _bare(x: Any, weight: Any, options: Options) -> Tensor:
    """F(x, weight)."""
    return conv_act(x, weight, None, None, *options.linear())


def _bare_sum(
    first: tuple[Tensor | None, Tensor], second: tuple[Tensor, Tensor | None], shift: Tensor | None,
    options: Options,
) -> Tensor | None:  # fmt: skip
    """F(first) + F(second) + shift, terms with a None left out; None where nothing is left."""
    terms: list[Tensor | None] = [
        _bare(pair[0], pair[1], options) for pair in (first, second) if pair[0] is not None and pair[1] is not None
    ]
    if shift is not None:
        x, weight = second[0], first[1]
        terms.append(_channels(shift, x).expand(options.geometry().output_shape(x, weight)))
    return _sum(terms)


# --- conv_act_backward: grad_output, x, weight, output -------------------------------------------------------------


def _save_conv_act_backward(ctx: Any, tensors: _Tensors, options: WithNeeds, output: tuple[Tensor, ...]) -> _Tensors:
    return tensors


def _slope(y: Tensor | None, options: Options) -> Tensor | int:
    return 1 if y is None else slope_at(y, *options.act())


def _change_of_slope(y: Tensor, activation: str) -> Tensor | None:
    """d act'(u) / dy; None where it is zero."""
    return {"tanh": lambda: -2 * y, "sigmoid": lambda: 1 - 2 * y}.get(activation, lambda: None)()


def _double_backward_formula(
    ctx: Any, needs: tuple[bool, ...], of_grad_x: Tensor | None, of_grad_w: Tensor | None, of_grad_b: Tensor | None
) -> _Tensors:
    grad_output, x, weight, y = ctx.saved_tensors
    options, computed = ctx.options
    vx, vw, vb = _where_needed((of_grad_x, of_grad_w, of_grad_b), computed)
    slope, linear = _slope(y, options), options.linear()
    g = grad_output * slope
    to_grad_output = to_x = to_weight = to_output = None
    if needs[0] or needs[3]:
        total = _bare_sum((vx, weight), (x, vw), vb, linear)
        if total is not None:
            to_grad_output = total * slope if needs[0] else None
            change = None if y is None else _change_of_slope(y, options.activation)
            to_output = total * grad_output * change if needs[3] and change is not None else None
    if needs[1] and vw is not None:
        to_x = conv_act_backward(g, x, vw, None, *linear, [True, False, False])[0]
    if needs[2] and vx is not None:
        to_weight = conv_act_backward(g, vx, weight, None, *linear, [False, True, False])[1]
    return to_grad_output, to_x, to_weight, to_output


def _conv_act_backward_jvp(
    ctx: Any, dgrad: Tensor | None, dx: Tensor | None, dw: Tensor | None, dy: Tensor | None, *_: None
) -> _Tensors:
    grad_output, x, weight, y = ctx.saved_tensors
    options, computed = ctx.options
    slope, linear = _slope(y, options), options.linear()
    g = grad_output * slope
    change = None if y is None or dy is None else _change_of_slope(y, options.activation)
    dg = _sum([
        None if dgrad is None else dgrad * slope,
        None if change is None or dy is None else grad_output * change * dy,
    ])  # fmt: skip
    terms: list[list[Tensor | None]] = [[], [], []]
    if dg is not None:
        done = conv_act_backward(dg, x, weight, None, *linear, computed)
        terms = [[part] for part in done]
    if computed[0] and dw is not None:
        terms[0].append(conv_act_backward(g, x, dw, None, *linear, [True, False, False])[0])
    if computed[1] and dx is not None:
        terms[1].append(conv_act_backward(g, dx, weight, None, *linear, [False, True, False])[1])
    channels = linear.geometry().out_channels(weight)
    nothing = (x.new_zeros(x.shape), x.new_zeros(weight.shape), x.new_zeros(channels, dtype=accumulator(x.dtype)))
    result = []
    for parts, zero, need in zip(terms, nothing, computed, strict=True):
        tangent = _sum(parts) if need else zero.new_zeros(0)
        result.append(zero if tangent is None else tangent)
    return tuple(result)


# --- conv_bn_act: x, weight, bn_weight, bn_bias --------------------------------------------------------------------


def _second(
    grad_output: Tensor, inputs: Sequence[Tensor | None], directions: Sequence[Tensor | None], options: NormOptions
) -> list[Tensor | None]:
    """⟨directions, ∂B⟩ for grad_output and the four inputs; a direction belongs to an input, None is zero."""
    if options.group:
        raise NotImplementedError(
            "conv_bn_act: higher derivatives and forward mode are not there for statistics over several processes"
        )
    block = options.block()

    def output(x: Tensor, weight: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None) -> Tensor:
        return reference.whole(x, weight, bn_weight, bn_bias, block.geometry(), *block.act(), options.eps)

    return through_gradient(output, grad_output, inputs, directions)


def _zeros(x: Tensor, weight: Tensor, options: NormOptions) -> Tensor:
    return torch.zeros_like(empty_output(x, weight, options.block().geometry()))


def _save_conv_bn_act(ctx: Any, tensors: _Tensors, options: NormOptions, output: tuple[Tensor, ...]) -> _Tensors:
    _, z, statistics = output
    ctx.mark_non_differentiable(z, statistics)
    return (*tensors, z, statistics)


def _norm_backward_formula(ctx: Any, needs: tuple[bool, ...], grad_output: Tensor | None, *_: None) -> _Tensors:
    if grad_output is None:
        return ()
    return _where_needed(conv_bn_act_backward(grad_output, *ctx.saved_tensors, *ctx.options, list(needs[:4])), needs)


def _conv_bn_act_jvp(ctx: Any, *tangents: Tensor | None) -> _Tensors:
    *inputs, _, _ = ctx.saved_tensors
    zeros = _zeros(inputs[0], inputs[1], ctx.options)
    tangent = _second(zeros, inputs, tangents[:4], ctx.options)[0]
    return zeros if tangent is None else tangent, None, None


# --- conv_bn_act_backward: grad_output, the four inputs, z, statistics ----------------------------------------------


def _save_conv_bn_act_backward(ctx: Any, tensors: _Tensors, options: WithNeeds, output: tuple[Tensor, ...]) -> _Tensors:
    grad_output, x, weight, bn_weight, bn_bias, _, _ = tensors
    return grad_output, x, weight, bn_weight, bn_bias


def _norm_double_backward_formula(ctx: Any, needs: tuple[bool, ...], *directions: Tensor | None) -> _Tensors:
    grad_output, *inputs = ctx.saved_tensors
    options, computed = ctx.options
    wanted = _where_needed(directions, computed)
    return _where_needed(_second(grad_output, inputs, wanted, options), needs)


def _conv_bn_act_backward_jvp(ctx: Any, *tangents: Tensor | None) -> _Tensors:
    grad_output, *inputs = ctx.saved_tensors
    dgrad, *moved = tangents[:5]
    options, computed = ctx.options
    parts = [_second(grad_output, inputs, moved, options)[1:]]
    if dgrad is not None:
        needs = [value is not None for value in inputs]
        # B(dgrad, inputs), with z and statistics made anew: they are not among what is saved
        _, z, statistics = conv_bn_act(*inputs, *options)
        grads = conv_bn_act_backward(dgrad, *inputs, z, statistics, *options, needs)
        parts.append([grad if need else None for grad, need in zip(grads, needs, strict=True)])
    return sum_of_tangents(parts, inputs, computed, grad_output)


conv_act = DifferentiableOp(
    library,
    conv_act_op,
    options=Options,
    setup_context=_save_conv_act,
    backward=_backward_formula,
    jvp=_conv_act_jvp,
    foldable=True,
)
conv_act_backward = DifferentiableOp(
    library,
    conv_act_backward_op,
    options=with_needs(Options),
    setup_context=_save_conv_act_backward,
    backward=_double_backward_formula,
    jvp=_conv_act_backward_jvp,
    foldable=False,
)
conv_bn_act = DifferentiableOp(
    library,
    conv_bn_act_op,
    options=NormOptions,
    setup_context=_save_conv_bn_act,
    backward=_norm_backward_formula,
    jvp=_conv_bn_act_jvp,
    foldable=False,
)
conv_bn_act_backward = DifferentiableOp(
    library,
    conv_bn_act_backward_op,
    options=with_needs(NormOptions),
    setup_context=_save_conv_bn_act_backward,
    backward=_norm_double_backward_formula,
    jvp=_conv_bn_act_backward_jvp,
    foldable=False,
)
