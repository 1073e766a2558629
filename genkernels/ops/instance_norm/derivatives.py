"""Derivatives of the operators, first and higher, backward and forward mode.

The backward operator computes B(g, inputs) = Jᵀ g. It is linear in g, so ∂B/∂g is J itself, which gives forward mode;
B is differentiated as the plain PyTorch of reference.py, which is exact, but slower than the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.differentiable_op import DifferentiableOp, WithNeeds, with_needs
from ..core.second_derivatives import sum_of_tangents, through_gradient
from . import reference
from .schema import Options, instance_norm_act_backward_op, instance_norm_act_op, library

_Tensors = tuple[Tensor | None, ...]


def _second(
    grad_output: Tensor, inputs: Sequence[Tensor | None], directions: Sequence[Tensor | None], options: Options
) -> list[Tensor | None]:
    """⟨directions, ∂B⟩ for grad_output, x, weight and bias."""

    def output(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return reference.forward(x, weight, bias, *options)[0]

    return through_gradient(output, grad_output, inputs, directions)


# --- instance_norm_act: x, weight, bias; activation, negative_slope, eps ---------------------------------------------


def _save(ctx: Any, tensors: _Tensors, options: Options, output: tuple[Tensor, Tensor]) -> _Tensors:
    _, statistics = output
    ctx.mark_non_differentiable(statistics)
    return (*tensors, statistics)


def _backward_formula(ctx: Any, needs: tuple[bool, ...], grad_output: Tensor | None, _: None) -> _Tensors:
    if grad_output is None:
        return ()
    grads = instance_norm_act_backward(grad_output, *ctx.saved_tensors, *ctx.options, list(needs[:3]))
    return tuple(grad if need else None for grad, need in zip(grads, needs[:3], strict=True))


def _jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, None]:
    *inputs, _ = ctx.saved_tensors
    zeros = torch.zeros_like(inputs[0])
    tangent = _second(zeros, inputs, tangents[:3], ctx.options)[0]
    return zeros if tangent is None else tangent, None


# --- instance_norm_act_backward: grad_output, x, weight, bias, statistics; options as above, needs -------------------


def _save_backward(ctx: Any, tensors: _Tensors, options: WithNeeds, output: tuple[Tensor, ...]) -> _Tensors:
    grad_output, x, weight, bias, _ = tensors
    return grad_output, x, weight, bias


def _double_backward_formula(ctx: Any, needs: tuple[bool, ...], *directions: Tensor | None) -> _Tensors:
    grad_output, *inputs = ctx.saved_tensors
    options, computed = ctx.options
    wanted = [v if done else None for v, done in zip(directions, computed, strict=True)]
    result = _second(grad_output, inputs, wanted, options)
    return tuple(value if need else None for value, need in zip(result, needs, strict=False))


def _backward_jvp(ctx: Any, *tangents: Tensor | None) -> _Tensors:
    grad_output, *inputs = ctx.saved_tensors
    dgrad, *moved = tangents[:4]
    options, computed = ctx.options
    parts = [_second(grad_output, inputs, moved, options)[1:]]
    if dgrad is not None:
        needs = [value is not None for value in inputs]
        _, statistics = instance_norm_act(*inputs, *options)  # made anew: they are not among what is saved
        grads = instance_norm_act_backward(dgrad, *inputs, statistics, *options, needs)
        parts.append([grad if need else None for grad, need in zip(grads, needs, strict=True)])
    return sum_of_tangents(parts, inputs, computed, grad_output)


instance_norm_act = DifferentiableOp(
    library,
    instance_norm_act_op,
    options=Options,
    setup_context=_save,
    backward=_backward_formula,
    jvp=_jvp,
    foldable=False,
)
instance_norm_act_backward = DifferentiableOp(
    library,
    instance_norm_act_backward_op,
    options=with_needs(Options),
    setup_context=_save_backward,
    backward=_double_backward_formula,
    jvp=_backward_jvp,
    foldable=False,
)
