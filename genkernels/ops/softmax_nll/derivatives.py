"""Derivatives of the operators, first and higher, backward and forward mode.

The backward operator computes B(g, inputs) = Jᵀ g. It is linear in g, so ∂B/∂g is J itself, which gives forward mode;
B is differentiated as the plain PyTorch of reference.py, which is exact, but slower, and holds the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.differentiable_op import DifferentiableOp, WithNeeds, with_needs
from ..core.second_derivatives import sum_of_tangents, through_gradient
from . import reference
from .schema import library, softmax_nll_backward_op, softmax_nll_op, softmax_nll_total_op

_Tensors = tuple[Tensor | None, ...]


def _second(
    grad: Tensor, inputs: Sequence[Tensor | None], target: Tensor, directions: Sequence[Tensor | None], live: Any
) -> list[Tensor | None]:
    """⟨directions, ∂B⟩ for grad, x, weight and bias."""

    def output(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return reference.forward(x, weight, bias, target, live)[0]

    return through_gradient(output, grad, inputs, directions)


# --- softmax_nll: x, weight, bias, target; live ---------------------------------------------------------------------


def _save(ctx: Any, tensors: _Tensors, options: Any, output: tuple[Tensor, Tensor]) -> _Tensors:
    _, log_sum_exp = output
    ctx.mark_non_differentiable(log_sum_exp)
    return (*tensors, log_sum_exp)


def _backward_formula(ctx: Any, needs: tuple[bool, ...], grad: Tensor | None, _: None) -> _Tensors:
    if grad is None:
        return ()
    grads = softmax_nll_backward(grad, *ctx.saved_tensors, *ctx.options, list(needs[:3]))
    return (*(g if need else None for g, need in zip(grads, needs[:3], strict=True)), None)


def _jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, None]:
    *inputs, target, log_sum_exp = ctx.saved_tensors
    zeros = torch.zeros_like(log_sum_exp)
    tangent = _second(zeros, inputs, target, tangents[:3], *ctx.options)[0]
    return zeros if tangent is None else tangent, None


# --- softmax_nll_total: x, weight, bias, target, counts; live, needs -------------------------------------------------


def _save_total(ctx: Any, tensors: _Tensors, options: Any, output: tuple[Tensor, ...]) -> _Tensors:
    _, *grads = output
    ctx.mark_non_differentiable(*grads)
    return (*tensors, *grads)


def _total_backward(ctx: Any, needs: tuple[bool, ...], grad: Tensor | None, *_: None) -> _Tensors:
    if grad is None:
        return ()
    *inputs, target, counts = ctx.saved_tensors[:5]
    found = ctx.saved_tensors[5:]
    live, computed = ctx.options
    if torch.is_grad_enabled() or any(need and not done for need, done in zip(needs, computed, strict=False)):
        # Derivatives of what is returned may be asked for, and those that were found are of the inputs alone.
        _, log_sum_exp = softmax_nll(*inputs, target, live)
        scale = grad.expand(target.shape) if counts is None else grad * counts
        found = softmax_nll_backward(scale.to(log_sum_exp.dtype), *inputs, target, log_sum_exp, live, list(needs[:3]))
        return (*(g if need else None for g, need in zip(found, needs[:3], strict=True)), None, None)
    scaled = [(g * grad).to(t.dtype) if need else None for g, t, need in zip(found, inputs, needs[:3], strict=True)]
    return (*scaled, None, None)


def _total_jvp(ctx: Any, *tangents: Tensor | None) -> _Tensors:
    *inputs, target, counts = ctx.saved_tensors[:5]
    live, _ = ctx.options
    _, log_sum_exp = softmax_nll(*inputs, target, live)
    tangent = _second(torch.zeros_like(log_sum_exp), inputs, target, tangents[:3], live)[0]
    if tangent is None:
        return log_sum_exp.new_zeros(()), None, None, None
    return (tangent if counts is None else tangent * counts).sum(), None, None, None


# --- softmax_nll_backward: grad, x, weight, bias, target, log_sum_exp; live, needs -----------------------------------


def _save_backward(ctx: Any, tensors: _Tensors, options: WithNeeds, output: tuple[Tensor, ...]) -> _Tensors:
    return tensors[:5]


def _double_backward_formula(ctx: Any, needs: tuple[bool, ...], *directions: Tensor | None) -> _Tensors:
    grad, *inputs, target = ctx.saved_tensors
    options, computed = ctx.options
    wanted = [v if done else None for v, done in zip(directions, computed, strict=True)]
    result = _second(grad, inputs, target, wanted, *options)
    return tuple(value if need else None for value, need in zip(result, needs, strict=False))


def _backward_jvp(ctx: Any, *tangents: Tensor | None) -> _Tensors:
    grad, *inputs, target = ctx.saved_tensors
    dgrad, *moved = tangents[:4]
    options, computed = ctx.options
    parts = [_second(grad, inputs, target, moved, *options)[1:]]
    if dgrad is not None:
        needs = [value is not None for value in inputs]
        _, log_sum_exp = softmax_nll(*inputs, target, *options)  # made anew: it is not among what is saved
        grads = softmax_nll_backward(dgrad, *inputs, target, log_sum_exp, *options, needs)
        parts.append([g if need else None for g, need in zip(grads, needs, strict=True)])
    return sum_of_tangents(parts, inputs, computed, grad)


softmax_nll = DifferentiableOp(
    library, softmax_nll_op, setup_context=_save, backward=_backward_formula, jvp=_jvp, foldable=False
)
softmax_nll_total = DifferentiableOp(
    library,
    softmax_nll_total_op,
    setup_context=_save_total,
    backward=_total_backward,
    jvp=_total_jvp,
    foldable=False,
)
softmax_nll_backward = DifferentiableOp(
    library,
    softmax_nll_backward_op,
    options=with_needs(lambda *options: options),
    setup_context=_save_backward,
    backward=_double_backward_formula,
    jvp=_backward_jvp,
    foldable=False,
)
