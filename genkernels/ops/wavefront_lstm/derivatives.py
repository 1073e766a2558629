"""Derivatives of the wavefront LSTM, first and higher, backward and forward mode.

With R(inputs) the walk and J its derivative, backward computes B(g, inputs) = Jᵀ g. Everything else is a derivative of
B: it is linear in g, so ∂B/∂g is J itself, which gives forward mode, and ∂B/∂inputs is symmetric. B is differentiated
as the plain PyTorch of reference.py, which is exact, but slower than the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..autograd import DifferentiableOp
from . import reference
from .geometry import Geometry
from .schema import backward_ops, empty_hidden, forward_ops, library

_Tensors = tuple[Tensor | None, ...]


def walks_of(tensors: Sequence[Any], count: int) -> list[Any]:
    """The tensors of each of `count` walks, cut out of an operator's flat list."""
    size = len(tensors) // count
    return [tensors[walk * size : (walk + 1) * size] for walk in range(count)]


def geometries(front: str, taps: Sequence[int], mirrored: Sequence[bool]) -> list[Geometry]:
    """The geometry of each walk, from an operator's options."""
    return [Geometry.of(front, taps, one) for one in mirrored]


# --- derivatives of backward, for one walk -----------------------------------------------------------------------


def _second(
    grad_hidden: Tensor, inputs: Sequence[Tensor | None], directions: Sequence[Tensor | None], geometry: Geometry
) -> list[Tensor | None]:
    """⟨directions, ∂B⟩ for grad_hidden, gates, weight, h0, c0; a direction belongs to an input, None is zero."""
    present = [k for k, value in enumerate(inputs) if value is not None]
    chosen = [k for k in present if directions[k] is not None]

    def first(grad: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        filled: list[Any] = [None] * 4
        for k, value in zip(present, values, strict=True):
            filled[k] = value
        gates, weight, h0, c0 = filled
        _, trace = reference.forward(gates, weight, h0, c0, geometry)
        grads = reference.backward(grad, weight, h0, c0, trace, geometry)
        return tuple(grads[k].to(grad.dtype) for k in chosen)

    result: list[Tensor | None] = [None] * 5
    if not chosen:
        return result
    values = [inputs[k] for k in present]
    pull = torch.func.vjp(first, grad_hidden, *values)[1]
    to_grad, *to_values = pull(tuple(directions[k].to(grad_hidden.dtype) for k in chosen))  # type: ignore[union-attr]
    result[0] = to_grad
    for k, value in zip(present, to_values, strict=True):
        result[1 + k] = value
    return result


def _sum(terms: Sequence[Tensor | None]) -> Tensor | None:
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


def _add(*columns: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [_sum(terms) for terms in zip(*columns, strict=True)]


# --- the operators -----------------------------------------------------------------------------------------------


class _Walks:
    """The forward and the backward operator of one or two walks, as DifferentiableOp."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.forward = DifferentiableOp(
            library,
            forward_ops[count],
            setup_context=self._save_forward,
            backward=self._backward_formula,
            jvp=self._forward_jvp,
            foldable=False,
        )
        self.backward = DifferentiableOp(
            library,
            backward_ops[count],
            setup_context=self._save_backward,
            backward=self._double_backward_formula,
            jvp=self._backward_jvp,
            foldable=False,
        )

    # gates, weight, h0, c0 of each walk; front, taps, mirrored, keep -> hidden of each walk, saved

    def _save_forward(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> _Tensors:
        *tensors, front, taps, mirrored, _ = inputs
        ctx.options = [front, taps, mirrored]
        ctx.mark_non_differentiable(output[-1])
        return (*tensors, output[-1])

    def _backward_formula(self, ctx: Any, needs: tuple[bool, ...], *grads: Tensor | None) -> _Tensors:
        *tensors, saved = ctx.saved_tensors
        arguments: list[Any] = []
        for grad, inputs in zip(grads[:-1], walks_of(tensors, self.count), strict=True):
            arguments += [_zeros(inputs) if grad is None else grad, *inputs]
        wanted = list(needs[: 4 * self.count])
        results = self.backward(*arguments, saved, *ctx.options, wanted)
        return (*(grad if need else None for grad, need in zip(results, wanted, strict=True)), *[None] * 4)

    def _forward_jvp(self, ctx: Any, *tangents: Tensor | None) -> _Tensors:
        inputs_of = walks_of(ctx.saved_tensors[:-1], self.count)
        moved = walks_of(tangents[: 4 * self.count], self.count)
        result: list[Tensor | None] = []
        for inputs, directions, geometry in zip(inputs_of, moved, geometries(*ctx.options), strict=True):
            zeros = _zeros(inputs)
            tangent = _second(zeros, inputs, directions, geometry)[0]
            result.append(zeros if tangent is None else tangent)
        return (*result, None)

    # grad_hidden, gates, weight, h0, c0 of each walk; saved, front, taps, mirrored, needs -> the gradients

    def _save_backward(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> _Tensors:
        *tensors, _, front, taps, mirrored, ctx.computed = inputs
        ctx.options = [front, taps, mirrored]
        return tuple(tensors)

    def _double_backward_formula(self, ctx: Any, needs: tuple[bool, ...], *directions: Tensor | None) -> _Tensors:
        result: list[Tensor | None] = []
        wanted = [v if done else None for v, done in zip(directions, ctx.computed, strict=True)]
        for (grad, *inputs), along, geometry in zip(
            walks_of(ctx.saved_tensors, self.count), walks_of(wanted, self.count), geometries(*ctx.options), strict=True
        ):
            result += _second(grad, inputs, along, geometry)
        flat = (value if need else None for value, need in zip(result, needs, strict=False))
        return (*flat, *[None] * 5)

    def _backward_jvp(self, ctx: Any, *tangents: Tensor | None) -> _Tensors:
        result: list[Tensor | None] = []
        computed = walks_of(ctx.computed, self.count)
        for (grad, *inputs), (dgrad, *moved), done, geometry in zip(
            walks_of(ctx.saved_tensors, self.count),
            walks_of(tangents[: 5 * self.count], self.count),
            computed,
            geometries(*ctx.options),
            strict=True,
        ):
            along = _second(grad, inputs, moved, geometry)[1:]
            if dgrad is not None:
                along = _add(along, _first(dgrad, inputs, geometry))
            for value, like, need in zip(along, inputs, done, strict=True):
                if not need or like is None:
                    result.append(grad.new_zeros(0))
                else:
                    result.append(torch.zeros_like(like) if value is None else value)
        return tuple(result)


def _zeros(inputs: Sequence[Tensor | None]) -> Tensor:
    assert inputs[0] is not None
    return torch.zeros_like(empty_hidden(inputs[0]))


def _first(grad_hidden: Tensor, inputs: Sequence[Any], geometry: Geometry) -> list[Tensor | None]:
    """B itself, from the operator."""
    options = [geometry.front, list(geometry.taps), [geometry.mirrored]]
    needs = [value is not None for value in inputs]
    saved = grad_hidden.new_empty(0)
    results = walks[1].backward(grad_hidden, *inputs, saved, *options, needs)
    return [grad if need else None for grad, need in zip(results, needs, strict=True)]


walks = {count: _Walks(count) for count in forward_ops}
