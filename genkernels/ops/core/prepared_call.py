"""Prepared calls: from Python straight to the CPU kernel, past PyTorch's dispatcher, where nothing watches the call.

An operator that is written in Python costs 40 to 80 us in the dispatcher: from Python into C++, to the kernel of the
Autograd key, back into C++ and to the kernel of the CPU key, each with its arguments boxed. At small sizes that is
several times the work itself. The dispatcher is there for whoever sees or changes the call on its way; where nobody
does, a prepared call runs the kernel, under one autograd.Function with the same derivatives.

Most calls are prepared on the spot. An operator whose checks and native arguments take longer than its smallest kernels
keeps them, by a key of everything that they depend on (:func:`key_of`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, is_autocast_enabled, is_grad_enabled, nn
from torch.compiler import is_compiling

from .torch_internals import (
    any_requires_grad,
    apply_of,
    dispatch_modes,
    forward_mode_is_on,
    function_modes,
    is_batched_backward,
    is_wrapped,
    profiler_is_on,
    tracing_state,
    transforms_are_active,
)

Key = tuple[Any, ...]
MOST_KEPT = 1024  # calls of an operator
_PLAIN = frozenset({Tensor, nn.Parameter})


def nothing_watches(x: Any) -> bool:
    """Whether x is on the CPU and nothing that PyTorch has would see this call.

    Such a thing is a compiler, a transform, a mode (fake tensors, tracing, flop counting), autocast or the profiler.
    """
    return (
        not is_compiling()
        and type(x) in _PLAIN
        and x.is_cpu
        and not is_wrapped(x)
        and not dispatch_modes()
        and not function_modes()
        and not transforms_are_active()
        and not is_batched_backward()
        and not forward_mode_is_on()
        and not is_autocast_enabled("cpu")
        and tracing_state() is None
        and not profiler_is_on()
    )


def are_plain_tensors(*values: Any) -> bool:
    """Whether all are tensors of no subclass, or None."""
    for value in values:  # noqa: SIM110 - a comprehension takes twice the time
        if value is not None and (type(value) not in _PLAIN or is_wrapped(value)):
            return False
    return True


def key_of(x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> Key | None:
    """What the checks and the native arguments of a call depend on; None where something watches it."""
    if not (nothing_watches(x) and are_plain_tensors(weight, bias) and weight.is_cpu):
        return None
    key = (x.shape, x.stride(), x.dtype, weight.shape, weight.stride(), weight.dtype, *options)
    if bias is None:
        return key
    return (*key, bias.shape, bias.stride(), bias.dtype) if bias.is_cpu else None


class PreparedCall(NamedTuple):
    """What runs a call whose checks are done."""

    options: Any
    """What the operator takes beside tensors, by name."""
    arguments: tuple[Any, ...]
    """What launch takes behind the tensors."""
    launch: Callable[..., Any]
    """(*tensors, *arguments) -> the operator's result."""
    launch_backward: Callable[..., tuple[Tensor | None, ...]] | None = None
    """(*grad_outputs, *saved, needs) -> the tensors' gradients, where the first derivative is prepared, too."""


def one_for_each(inputs: tuple[Any, ...], gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of the first inputs, and None for those that follow."""
    return (*gradients, *[None] * (len(inputs) - len(gradients)))


def function_of_prepared_calls(
    setup_context: Callable[[Any, tuple[Any, ...], Any, Any], tuple[Tensor | None, ...]],
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., Any]:
    """(prepared call, *tensors) -> its result, recorded for backward; the arguments are DifferentiableOp's."""

    class Prepared(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, call: PreparedCall, *tensors: Tensor | None) -> Any:
            output = call.launch(*tensors, *call.arguments)
            ctx.set_materialize_grads(False)
            ctx.call, ctx.options = call, call.options
            ctx.save_for_backward(*setup_context(ctx, tensors, call.options, output))
            return output

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
            launch, needs = ctx.call.launch_backward, ctx.needs_input_grad[1:]
            if launch is not None and not is_grad_enabled() and nothing_watches(grad_outputs[0]):
                return (None, *launch(*grad_outputs, *ctx.saved_tensors, needs))
            return (None, *one_for_each(needs, backward(ctx, needs, *grad_outputs)))

    apply = apply_of(Prepared)

    def run(call: PreparedCall, *tensors: Tensor | None) -> Any:
        if is_grad_enabled() and any_requires_grad(*tensors):
            return apply(call, *tensors)
        return call.launch(*tensors, *call.arguments)

    return run
