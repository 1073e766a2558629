"""When a call may go straight to the CPU kernel, past PyTorch's dispatcher.

An operator that is written in Python costs 40 to 80 us in the dispatcher: from Python into C++, to the kernel of the
Autograd key, back into C++ and to the kernel of the CPU key, each with its arguments boxed. At small sizes that is
several times the work itself. The dispatcher is there for whoever wants to see or change the call on its way; where
nobody does, the same autograd.Function runs on the kernel directly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .torch_internals import (
    dispatch_modes,
    forward_mode_is_on,
    function_modes,
    is_batched_backward,
    is_wrapped,
    profiler_is_on,
    tracing_state,
    transforms_are_active,
)

_PLAIN = frozenset({Tensor, nn.Parameter})


def is_open(x: Any) -> bool:
    """Whether x is on the CPU and nothing that PyTorch has would see this call.

    Such a thing is a compiler, a transform, a mode (fake tensors, tracing, flop counting), autocast or the profiler.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) in _PLAIN
        and x.is_cpu
        and not is_wrapped(x)
        and not dispatch_modes()
        and not function_modes()
        and not transforms_are_active()
        and not is_batched_backward()
        and not forward_mode_is_on()
        and not torch.is_autocast_enabled("cpu")
        and tracing_state() is None
        and not profiler_is_on()
    )


def are_plain(*values: Any) -> bool:
    """Whether all are plain tensors (no subclass) or None."""
    return all(value is None or (type(value) in _PLAIN and not is_wrapped(value)) for value in values)
