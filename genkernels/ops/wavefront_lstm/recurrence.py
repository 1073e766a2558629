"""Derivatives of a recurrence from one description of its first one.

With R(inputs) the result and J its derivative, the backward operator computes B(g, inputs) = Jᵀ g. Everything else is a
derivative of B: it is linear in g, so ∂B/∂g is J itself, which gives forward mode, and ∂B/∂inputs is symmetric. So it
takes B once more, written in PyTorch's own differentiable operators, which is exact, but slower than the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.differentiable_op import DifferentiableOp

_Tensors = tuple[Tensor | None, ...]


class RecurrenceOps:
    """The forward and the backward operator of a recurrence, as :class:`DifferentiableOp`.

    The operators take ``count`` independent recurrences side by side, each with ``size`` input tensors::

        forward(inputs of each, *options, keep) -> result of each, saved
        backward(grad and inputs of each, saved, *options, needs) -> gradients of the inputs of each

    Args:
        library, forward_op, backward_op: as for DifferentiableOp.
        gradients: B of one recurrence: (grad, inputs, options, index) -> the gradient of each input, whatever for
            inputs that are None; in PyTorch's own operators.
        empty_result: inputs of one recurrence -> its result, not written.
    """

    def __init__(
        self,
        library: torch.library.Library,
        forward_op: Any,
        backward_op: Any,
        *,
        count: int,
        size: int,
        gradients: Callable[[Tensor, Sequence[Any], Sequence[Any], int], Sequence[Tensor | None]],
        empty_result: Callable[[Sequence[Any]], Tensor],
    ) -> None:
        self.count, self.size = count, size
        self._gradients, self._empty_result = gradients, empty_result
        self.forward = DifferentiableOp(
            library,
            forward_op,
            setup_context=self._save_forward,
            backward=self._backward_formula,
            jvp=self._forward_jvp,
            foldable=False,
        )
        self.backward = DifferentiableOp(
            library,
            backward_op,
            setup_context=self._save_backward,
            backward=self._double_backward_formula,
            jvp=self._backward_jvp,
            foldable=False,
        )

    def _each(self, tensors: Sequence[Any]) -> list[Any]:
        """What belongs to each of the recurrences."""
        size = len(tensors) // self.count
        return [tensors[index * size : (index + 1) * size] for index in range(self.count)]

    # --- of forward

    def _save_forward(self, ctx: Any, tensors: _Tensors, options: Any, output: tuple[Tensor, ...]) -> _Tensors:
        *ctx.options, _ = options
        ctx.mark_non_differentiable(output[-1])
        return (*tensors, output[-1])

    def _backward_formula(self, ctx: Any, needs: tuple[bool, ...], *grads: Tensor | None) -> _Tensors:
        *tensors, saved = ctx.saved_tensors
        arguments: list[Any] = []
        for grad, inputs in zip(grads[:-1], self._each(tensors), strict=True):
            arguments += [self._zeros(inputs) if grad is None else grad, *inputs]
        wanted = list(needs[: len(tensors)])
        results = self.backward(*arguments, saved, *ctx.options, wanted)
        return tuple(grad if need else None for grad, need in zip(results, wanted, strict=True))

    def _forward_jvp(self, ctx: Any, *tangents: Tensor | None) -> _Tensors:
        tensors = ctx.saved_tensors[:-1]
        result: list[Tensor | None] = []
        for index, (inputs, moved) in enumerate(
            zip(self._each(tensors), self._each(tangents[: len(tensors)]), strict=True)
        ):
            zeros = self._zeros(inputs)
            tangent = self._second(zeros, inputs, moved, ctx.options, index)[0]
            result.append(zeros if tangent is None else tangent)
        return (*result, None)

    # --- of backward

    def _save_backward(self, ctx: Any, tensors: _Tensors, options: Any, output: tuple[Tensor, ...]) -> _Tensors:
        *ctx.options, ctx.computed = options
        return tensors[:-1]

    def _double_backward_formula(self, ctx: Any, needs: tuple[bool, ...], *directions: Tensor | None) -> _Tensors:
        result: list[Tensor | None] = []
        wanted = [v if done else None for v, done in zip(directions, ctx.computed, strict=True)]
        for index, ((grad, *inputs), along) in enumerate(
            zip(self._each(ctx.saved_tensors), self._each(wanted), strict=True)
        ):
            result += self._second(grad, inputs, along, ctx.options, index)
        return tuple(value if need else None for value, need in zip(result, needs, strict=False))

    def _backward_jvp(self, ctx: Any, *tangents: Tensor | None) -> _Tensors:
        given = self._each(ctx.saved_tensors)
        moved_of = self._each(tangents[: len(ctx.saved_tensors)])
        result: list[Tensor | None] = []
        for index, ((grad, *inputs), (dgrad, *moved), done) in enumerate(
            zip(given, moved_of, self._each(ctx.computed), strict=True)
        ):
            along: Sequence[Tensor | None] = self._second(grad, inputs, moved, ctx.options, index)[1:]
            if dgrad is not None:
                direct = self._gradients(dgrad, inputs, ctx.options, index)
                along = [b if a is None or b is None else a + b for a, b in zip(along, direct, strict=True)]
            for value, like, need in zip(along, inputs, done, strict=True):
                if not need or like is None:
                    result.append(grad.new_zeros(0))
                else:
                    result.append(torch.zeros_like(like) if value is None else value.to(like.dtype))
        return tuple(result)

    # --- of B

    def _zeros(self, inputs: Sequence[Any]) -> Tensor:
        return torch.zeros_like(self._empty_result(inputs))

    def _second(
        self, grad: Tensor, inputs: Sequence[Any], directions: Sequence[Any], options: Sequence[Any], index: int
    ) -> list[Tensor | None]:
        """⟨directions, ∂B⟩ for grad and each input; a direction belongs to an input, None is zero."""
        present = [k for k, value in enumerate(inputs) if value is not None]
        chosen = [k for k in present if directions[k] is not None]

        def first(grad: Tensor, *values: Tensor) -> tuple[Any, ...]:
            filled: list[Any] = [None] * self.size
            for k, value in zip(present, values, strict=True):
                filled[k] = value
            grads: Any = self._gradients(grad, filled, options, index)
            return tuple(grads[k].to(grad.dtype) for k in chosen)

        result: list[Tensor | None] = [None] * (1 + self.size)
        if not chosen:
            return result
        pull = torch.func.vjp(first, grad, *(inputs[k] for k in present))[1]
        result[0], *to_values = pull(tuple(directions[k].to(grad.dtype) for k in chosen))
        for k, value in zip(present, to_values, strict=True):
            result[1 + k] = value
        return result
