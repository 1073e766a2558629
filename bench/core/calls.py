"""Calls of an alternative: what is timed, forward alone or with its backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Call = Callable[[], tuple[Tensor, ...]]  # -> a result and, with the backward pass, the gradients


def freshly_compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # Else every problem counts as a recompilation of the same function, and dynamo stops at the eighth.
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def call_of(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor | None, *, backward: bool) -> Call:
    """A pass in inference mode, or with the backward pass from ``grad``; None for a result of one number."""

    def forward() -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return (function(*inputs),)

    def step() -> tuple[Tensor, ...]:
        y = function(*inputs)
        return y, *torch.autograd.grad(y, inputs, grad)

    return step if backward else forward
