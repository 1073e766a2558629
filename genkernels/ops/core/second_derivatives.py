"""Derivatives of a backward pass for operators whose kernels end with the first: exact, in plain PyTorch, slower."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def through_gradient(
    output: Callable[..., Tensor],
    grad_output: Tensor,
    inputs: Sequence[Tensor | None],
    directions: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """⟨directions, ∂B⟩ for grad_output and each input, where B(grad_output, inputs) = Jᵀ grad_output.

    Args:
        output: of the inputs, in PyTorch's differentiable operators; J is its Jacobian.
        inputs: None for one that is not there.
        directions: one for the gradient of each input; None is zero.
    """
    present = [k for k, value in enumerate(inputs) if value is not None]
    chosen = [k for k in present if directions[k] is not None]
    result: list[Tensor | None] = [None] * (1 + len(inputs))
    if not chosen:
        return result

    def of_present(*values: Tensor) -> Tensor:
        filled: list[Tensor | None] = [None] * len(inputs)
        for k, value in zip(present, values, strict=True):
            filled[k] = value
        return output(*filled)

    def first(grad: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        # Copied, since PyTorch's batch norm (2.13, CPU) misreads a channels_last gradient of one row or one image
        # whose stride in that dimension is not the usual one.
        grads = torch.func.vjp(of_present, *values)[1](grad.clone(memory_format=torch.contiguous_format))
        return tuple(grads[present.index(k)] for k in chosen)

    pull = torch.func.vjp(first, grad_output, *[inputs[k] for k in present])[1]
    to_grad, *to_values = pull(tuple(directions[k] for k in chosen))
    result[0] = to_grad
    for k, value in zip(present, to_values, strict=True):
        result[1 + k] = value
    return result


def sum_of_tangents(
    parts: Sequence[Sequence[Tensor | None]], inputs: Sequence[Tensor | None], computed: Sequence[bool], empty: Tensor
) -> tuple[Tensor, ...]:
    """What a backward pass' results move by: the sum of the parts for each input.

    Args:
        parts: each one tangent for the gradient of each input; None is zero.
        computed: whether the pass gives the gradient of that input; else its result is empty, and so is this.
        empty: of the dtype and device of what is empty.
    """
    result = []
    for terms, like, done in zip(zip(*parts, strict=True), inputs, computed, strict=True):
        present = [term for term in terms if term is not None]
        if not done or like is None:
            result.append(empty.new_zeros(0))
        else:
            result.append(sum(present[1:], present[0]) if present else torch.zeros_like(like))
    return tuple(result)
