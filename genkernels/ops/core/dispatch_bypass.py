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

_PLAIN = frozenset({Tensor, nn.Parameter})
_C: Any = torch._C
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # some outlive their transform: func.vjp's
_VMAP: Any = torch._C._parse_dispatch_key("VmapMode")


def is_open(x: Any) -> bool:
    """Whether x is on the CPU and nothing that PyTorch has would see this call.

    Such a thing is a compiler, a transform, a mode (fake tensors, tracing, flop counting), autocast or the profiler.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) in _PLAIN
        and x.is_cpu
        and not _is_wrapped(x)
        and not _C._len_torch_dispatch_stack()
        and not _C._len_torch_function_stack()
        and not _C._are_functorch_transforms_active()
        and not _C._dispatch_tls_is_dispatch_key_included(_VMAP)  # autograd.grad(..., is_grads_batched=True)
        and torch.autograd.forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and _C._get_tracing_state() is None
        and not torch.autograd._profiler_enabled()
    )


def are_plain(*values: Any) -> bool:
    """Whether all are plain tensors (no subclass) or None."""
    return all(value is None or (type(value) in _PLAIN and not _is_wrapped(value)) for value in values)
