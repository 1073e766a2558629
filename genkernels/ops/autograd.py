"""Registers the derivative of an operator, so that ``torch.func`` transforms compose too.

``torch.library.register_autograd`` goes through ``autograd.Function.apply``, which refuses to run below a functorch
transform (``vmap(grad(...))`` fails). Kernels of the Autograd key are called with the functorch level already
taken off, as those of PyTorch's own operators are, so the plain base ``apply`` is the right one; it also costs less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function

_below_autograd = torch._C._after_autograd_keyset


def register_autograd(
    library: torch.library.Library,
    op: Any,
    *,
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> None:
    """Make ``op`` differentiable.

    Args:
        library: the library in which op was defined.
        op: the operator overload, positional arguments only.
        setup_context: called as (ctx, inputs, output), saves what backward needs.
        backward: called as (ctx, needs_input_grad, *grad_outputs), where a grad_output that nobody used is None;
            returns one gradient or None for each input of op.
    """

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = op.redispatch(keyset & _below_autograd, *inputs)
            ctx.set_materialize_grads(False)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Any) -> Any:
            return (None, *backward(ctx, ctx.needs_input_grad[1:], *grad_outputs))

    apply = super(torch.autograd.Function, Differentiable).apply

    def autograd_kernel(keyset: Any, *inputs: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            if torch._C._are_functorch_transforms_active():
                with enable_single_level_autograd_function():
                    return apply(keyset, *inputs)
            return apply(keyset, *inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & _below_autograd, *inputs)

    library.impl(op._schema.name.removeprefix("genkernels::"), autograd_kernel, "Autograd", with_keyset=True)
