"""Derivatives of the wavefront LSTM, first and higher, backward and forward mode, with and without its convolution.

With R(inputs) the result and J its derivative, the backward operator computes B(g, inputs) = Jᵀ g. Everything else is a
derivative of B: it is linear in g, so ∂B/∂g is J itself, which gives forward mode, and ∂B/∂inputs is symmetric. So it
takes B once more, written in PyTorch's own differentiable operators, which is exact, but slower than the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.differentiable_op import DifferentiableOp
from ..masked_conv import derivatives as conv
from . import reference
from .schema import LAYERS, RECURRENCES, Inputs, Operator, accumulator, library

_Tensors = tuple[Tensor | None, ...]


def _gradients(grad_hidden: Tensor, inputs: Inputs) -> list[Tensor | None]:
    """B of one group of tensors, in PyTorch's own operators; whatever for those that are None."""
    if inputs.x is not None:
        return _layer_gradients(grad_hidden, inputs)
    (own,), (geometry,) = inputs.directions, inputs.geometries
    _, trace = reference.forward(own.gates, own.weight, own.h0, own.c0, geometry)
    return [*reference.backward(grad_hidden, own.weight, own.h0, own.c0, trace, geometry)]


def _layer_gradients(grad_hidden: Tensor, inputs: Inputs) -> list[Tensor | None]:
    dtype = accumulator(grad_hidden.dtype)

    def wide(t: Any) -> Any:
        return None if t is None else t.to(dtype)

    grad, x = wide(grad_hidden), wide(inputs.x)
    grad_x = torch.zeros_like(x)
    results: list[Tensor | None] = []
    convolution = (inputs.mask_type, 1, "blocks", [1, 1], "none")
    for direction, geometry in zip(inputs.directions, inputs.geometries, strict=True):
        _, input_weight, input_bias, *state = map(wide, direction)
        with torch.autocast(x.device.type, enabled=False):
            gates = conv.forward(x, input_weight, input_bias, *convolution)
            _, trace = reference.forward(gates, *state, geometry)
            own = moved_up(grad) if geometry.mirrored else grad
            to_gates, *to_state = reference.backward(own, *state, trace, geometry)
            to_x, *to_input = conv.backward(to_gates, x, input_weight, None, *convolution, [True] * 3)
        grad_x = grad_x + to_x
        results += [*to_input, *to_state]
    return [grad_x, *results]


def moved_up(grad_hidden: Tensor) -> Tensor:
    """The gradient of what was moved a row down, its last row dropped."""
    return F.pad(grad_hidden[:, :, 1:], (0, 0, 0, 1)) if grad_hidden.shape[2] else grad_hidden


class DifferentiableLstm:
    """A forward operator and its backward one, as :class:`DifferentiableOp`."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.forward = DifferentiableOp(
            library,
            operator.forward_op,
            setup_context=self._save_forward,
            backward=self._backward_formula,
            jvp=self._forward_jvp,
            foldable=False,
        )
        self.backward = DifferentiableOp(
            library,
            operator.backward_op,
            setup_context=self._save_backward,
            backward=self._double_backward_formula,
            jvp=self._backward_jvp,
            foldable=False,
        )

    def _groups(self, values: Sequence[Any]) -> list[Any]:
        """What belongs to each group of tensors."""
        count = self.operator.group_count
        size = len(values) // count
        return [values[index * size : (index + 1) * size] for index in range(count)]

    # --- of forward

    def _save_forward(self, ctx: Any, tensors: _Tensors, options: Any, output: tuple[Tensor, ...]) -> _Tensors:
        *ctx.options, _ = options
        ctx.mark_non_differentiable(output[-1])
        return (*tensors, output[-1])

    def _backward_formula(self, ctx: Any, needs: tuple[bool, ...], *grads: Tensor | None) -> _Tensors:
        *tensors, saved = ctx.saved_tensors
        arguments: list[Any] = []
        for index, (grad, inputs) in enumerate(zip(grads[:-1], self._groups(tensors), strict=True)):
            arguments += [self._zeros(inputs, ctx.options, index) if grad is None else grad, *inputs]
        wanted = list(needs[: len(tensors)])
        results = self.backward(*arguments, saved, *ctx.options, wanted)
        return tuple(grad if need else None for grad, need in zip(results, wanted, strict=True))

    def _forward_jvp(self, ctx: Any, *tangents: Tensor | None) -> _Tensors:
        tensors = ctx.saved_tensors[:-1]
        result: list[Tensor | None] = []
        for index, (inputs, moved) in enumerate(
            zip(self._groups(tensors), self._groups(tangents[: len(tensors)]), strict=True)
        ):
            zeros = self._zeros(inputs, ctx.options, index)
            tangent = self._second(zeros, inputs, moved, ctx.options, index)[0]
            result.append(zeros if tangent is None else tangent)
        return (*result, None)

    # --- of backward

    def _save_backward(self, ctx: Any, tensors: _Tensors, options: Any, output: tuple[Tensor, ...]) -> _Tensors:
        *ctx.options, ctx.computed = options
        return tensors[:-1]  # without what forward saved

    def _double_backward_formula(self, ctx: Any, needs: tuple[bool, ...], *tangents: Tensor | None) -> _Tensors:
        result: list[Tensor | None] = []
        wanted = [v if done else None for v, done in zip(tangents, ctx.computed, strict=True)]
        for index, ((grad, *inputs), along) in enumerate(
            zip(self._groups(ctx.saved_tensors), self._groups(wanted), strict=True)
        ):
            result += self._second(grad, inputs, along, ctx.options, index)
        return tuple(value if need else None for value, need in zip(result, needs, strict=False))

    def _backward_jvp(self, ctx: Any, *tangents: Tensor | None) -> _Tensors:
        given = self._groups(ctx.saved_tensors)
        moved_of = self._groups(tangents[: len(ctx.saved_tensors)])
        result: list[Tensor | None] = []
        for index, ((grad, *inputs), (dgrad, *moved), done) in enumerate(
            zip(given, moved_of, self._groups(ctx.computed), strict=True)
        ):
            along: Sequence[Tensor | None] = self._second(grad, inputs, moved, ctx.options, index)[1:]
            if dgrad is not None:
                direct = _gradients(dgrad, self.operator.inputs_of_group(inputs, ctx.options, index))
                along = [b if a is None or b is None else a + b for a, b in zip(along, direct, strict=True)]
            for value, like, need in zip(along, inputs, done, strict=True):
                if not need or like is None:
                    result.append(grad.new_zeros(0))
                else:
                    result.append(torch.zeros_like(like) if value is None else value.to(like.dtype))
        return tuple(result)

    # --- of B

    def _zeros(self, tensors: Sequence[Any], options: Sequence[Any], group: int) -> Tensor:
        (hidden,) = self.operator.inputs_of_group(tensors, options, group).empty_hidden()
        return torch.zeros_like(hidden)

    def _second(
        self, grad: Tensor, inputs: Sequence[Any], tangents: Sequence[Any], options: Sequence[Any], index: int
    ) -> list[Tensor | None]:
        """⟨tangents, ∂B⟩ for grad and each input; a tangent belongs to an input, None is zero."""
        present = [k for k, value in enumerate(inputs) if value is not None]
        chosen = [k for k in present if tangents[k] is not None]

        def first(grad: Tensor, *values: Tensor) -> tuple[Any, ...]:
            filled: list[Any] = [None] * self.operator.group_size
            for k, value in zip(present, values, strict=True):
                filled[k] = value
            grads: Any = _gradients(grad, self.operator.inputs_of_group(filled, options, index))
            return tuple(grads[k].to(grad.dtype) for k in chosen)

        result: list[Tensor | None] = [None] * (1 + self.operator.group_size)
        if not chosen:
            return result
        pull = torch.func.vjp(first, grad, *(inputs[k] for k in present))[1]
        result[0], *to_values = pull(tuple(tangents[k].to(grad.dtype) for k in chosen))
        for k, value in zip(present, to_values, strict=True):
            result[1 + k] = value
        return result


recurrences = {count: DifferentiableLstm(operator) for count, operator in RECURRENCES.items()}
layers = {count: DifferentiableLstm(operator) for count, operator in LAYERS.items()}
