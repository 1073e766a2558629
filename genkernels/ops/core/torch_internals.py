"""The private names of torch that this package stands on, each with what is relied on.

No other file uses a private name of torch (``tests/ops/test_torch_internals.py`` holds that, and one test for each name
that fails where its meaning changes). Names that are called often are bound here once, so that a call costs no more
than the private name itself. Attributes that every module and tensor has (``_modules``, ``_forward_hooks``,
``_version``) and methods that a subclass may override are read where they are needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad as _forward_ad
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode  # sees every operator that runs
from torch.utils._pytree import tree_flatten as tree_flatten  # nested containers <-> their leaves
from torch.utils._pytree import tree_map as tree_map

_C: Any = torch._C
_functorch: Any = torch._C._functorch

# --- who watches a call ---------------------------------------------------------------------------------------------

profiler_is_on = torch.autograd._profiler_enabled
"""() -> whether a profiler (torch.profiler or the older one) records operators."""

dispatch_modes = _C._len_torch_dispatch_stack
"""() -> number of active ``TorchDispatchMode``s: fake tensors, tracing, flop counting."""

function_modes = _C._len_torch_function_stack
"""() -> number of active ``TorchFunctionMode``s."""

tracing_state = _C._get_tracing_state
"""() -> what ``torch.jit.trace`` has recorded so far, or None where nothing is traced."""

transforms_are_active = _C._are_functorch_transforms_active
"""() -> whether the call is inside of ``torch.func.grad``, ``vmap``, ``jvp`` or another transform."""

is_wrapped = _functorch.is_functorch_wrapped_tensor
"""(tensor) -> whether it is a transform's stand-in for another tensor. Some outlive their transform: func.vjp's."""

unwrapped_once = _functorch.get_unwrapped
"""(wrapped tensor) -> the tensor it stands for, which may be wrapped by a transform further out."""

_key_is_included = _C._dispatch_tls_is_dispatch_key_included
_VMAP_MODE = _C._parse_dispatch_key("VmapMode")
_Transform = _functorch.TransformType


def is_batched_backward() -> bool:
    """Whether this is a backward pass for several gradients at once: ``autograd.grad(..., is_grads_batched=True)``."""
    return _key_is_included(_VMAP_MODE)


def forward_mode_is_on() -> bool:
    """Whether tensors may carry tangents: inside of ``forward_ad.dual_level`` (and so of ``torch.func.jvp``)."""
    return _forward_ad._current_level >= 0


def jvp_levels() -> int:
    """How many ``torch.func.jvp`` are nested around this call."""
    return sum(level.key() == _Transform.Jvp for level in _functorch.get_interpreter_stack() or ())


def vmap_is_active() -> bool:
    """Whether a ``torch.func.vmap`` is around this call."""
    return any(level.key() == _Transform.Vmap for level in _functorch.get_interpreter_stack() or ())


def saved_tensors_hooks() -> Any:
    """The innermost ``torch.autograd.graph.saved_tensors_hooks`` as its two functions, or None: checkpointing."""
    return _C._autograd._top_saved_tensors_default_hooks(False)


global_module_hooks_exist = nn.modules.module._has_any_global_hook
"""() -> whether a hook is registered for the calls of all modules."""

module_call_code = nn.Module._call_impl.__code__
"""The code object in whose frames modules are called: its local ``self`` is the module, ``args`` what it is given."""

# --- the dispatcher and autograd ------------------------------------------------------------------------------------

below_autograd_keys = _C._after_autograd_keyset
"""The dispatch keys that come after autograd: ``op.redispatch(keys & these, ...)`` goes on to the next of them."""

below_autograd = _C._AutoDispatchBelowAutograd
"""A context manager: operators called inside go past autograd, and record nothing."""

any_requires_grad = _C._any_requires_grad
"""(*values) -> whether one of them is a tensor that requires a gradient; values of other types are looked over."""

DispatchKey = torch._C.DispatchKey
AUTOCAST_KEYS = {"cpu": DispatchKey.AutocastCPU, "cuda": DispatchKey.AutocastCUDA}
"""By device type the key under which an operator's autocast kernel is registered."""


def excluding(key: DispatchKey) -> Any:
    """A context manager inside which the dispatcher goes past this key."""
    return _C._ExcludeDispatchKeyGuard(_C.DispatchKeySet(key))


def name_of(op: Any) -> str:
    """Of an operator overload: "genkernels::masked_conv2d"."""
    return op._schema.name


def tensor_count(op: Any) -> int:
    """How many of an operator's arguments are tensors, or tensors that may be None."""
    return sum(str(argument.type) in ("Tensor", "Optional[Tensor]") for argument in op._schema.arguments)


def apply_of(function: type[torch.autograd.Function]) -> Any:
    """Its ``apply`` without the look for transforms, which a caller saves who knows that there are none."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


# --- tensors --------------------------------------------------------------------------------------------------------

new_wrapper_tensor = Tensor._make_wrapper_subclass
"""(cls, shape, strides=, dtype=, device=) -> a tensor of a subclass that has no storage of its own."""

no_torch_function = _C._disabled_torch_function_impl
"""As the ``__torch_function__`` of a subclass: its functions run as for a plain tensor, and return plain results."""

add_each = torch._foreach_add_
"""(tensors, others) -> None: adds the others in place, all in one call."""


def process_group(name: str) -> torch.distributed.ProcessGroup:
    """The process group of this name; for operators, whose arguments cannot be process groups."""
    return _C._distributed_c10d._resolve_process_group(name)


def unwrapped(x: Tensor) -> Tensor:
    """x with all its values, for a look at them: under ``torch.func.vmap`` those of all samples."""
    while is_wrapped(x):
        x = unwrapped_once(x)
    return x
