"""The swap of a module's forward pass and of nothing else: its class becomes a subclass, its ``__dict__`` stays.

So parameters, buffers, hooks, ``state_dict`` keys and ``isinstance`` are what they were. For a class ``Net`` that is to
run as ``kind`` says (``AcceleratedSequential``, say) the subclass is made on the spot, once:

    Net'  ->  kind  ->  Swapped  ->  Net  ->  nn.Module

``Net'`` holds the two halves for pickle and deepcopy, which make it again from them (both can be imported), and a
``forward`` with the signature of Net's, which tools read. ``kind.forward`` is the fused pass; its ``super().forward``
is Net's own, for the calls that the fused pass does not take. Net' and kind cannot be one class: kind serves every Net,
and signature and halves are those of one.

A parametrized module has a class of its own, which PyTorch made and unmakes: a subclass of what the module was, with a
property for each computed tensor. It stays on top, and what is below is swapped:

    ParametrizedNet  ->  Net        becomes        ParametrizedNet  ->  Net'  ->  kind  ->  Swapped  ->  Net
"""

from __future__ import annotations

import copyreg
from functools import cache, wraps
from typing import Any

import torch
from torch import nn

from .report import Reason

PLAN = "_genkernels_plan"


class Swapped:
    """First base of every made class; the second is the module's own."""

    _genkernels_kind: type[Swapped]
    _genkernels_original: type[nn.Module]
    _genkernels_plan: Any = None  # a Sequential's slices are built anew and have none

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        make, arguments, *rest = reduced
        if make is copyreg.__newobj__ and arguments == (type(self),):  # type: ignore[attr-defined]
            return (_again, (self._genkernels_kind, self._genkernels_original), *rest)
        return (make, arguments, *rest)


def _again(kind: Any, original: Any) -> Any:
    made: Any = made_class(kind, original)
    return made.__new__(made)


@cache
def made_class(kind: Any, original: Any) -> Any:
    """The subclass that runs as ``kind`` says, one for each class."""

    @wraps(original.forward)  # for its signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return kind.forward(self, *args, **kwargs)

    names = {
        "forward": forward,
        "_genkernels_kind": kind,
        "_genkernels_original": original,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return type(original)(original.__name__, (kind, original), names)


def why_no_swap(module: nn.Module) -> Reason | None:
    """The reason why the class of a module cannot be swapped, or None."""
    if "forward" in module.__dict__:
        return Reason("its forward is replaced on the instance")
    if type(module).__call__ is not nn.Module.__call__:
        return Reason("its __call__ is overridden")
    if type(module).__reduce_ex__ is not object.__reduce_ex__ or type(module).__reduce__ is not object.__reduce__:
        return Reason("its class pickles in a way of its own")
    return None


def swap(module: nn.Module, kind: Any, plan: Any) -> None:
    own: Any = type(module)
    if _is_class_of_parametrizations(module):
        module.__class__ = _on_base(own, made_class(kind, own.__bases__[0]))
        module.__class__._genkernels_parametrized = own  # type: ignore[attr-defined]
    else:
        module.__class__ = made_class(kind, own)
    module.__dict__[PLAN] = plan


def _is_class_of_parametrizations(module: nn.Module) -> bool:
    """Whether the class is one that PyTorch made for this module, and perhaps for its copies."""
    own = type(module)
    if not nn.utils.parametrize.is_parametrized(module) or len(own.__bases__) != 1:
        return False
    tensors: Any = module.parametrizations
    return all(isinstance(own.__dict__.get(name), property) for name in tensors)


def _on_base(own: Any, base: Any) -> Any:
    """A new class: copies of a module share theirs, and are swapped and restored each by itself."""
    left_out = ("__dict__", "__weakref__", "_genkernels_parametrized")
    names = {name: value for name, value in own.__dict__.items() if name not in left_out}
    return type(own)(own.__name__, (base,), names)


def unswap(module: nn.Module) -> None:
    if isinstance(module, Swapped):
        original = module._genkernels_original
        if type(module).__bases__ == (module._genkernels_kind, original):
            module.__class__ = original  # type: ignore[assignment]
        elif _is_parametrized_swap(module):
            module.__class__ = _on_base(type(module), original)
        else:
            raise RuntimeError(
                f"model: expected a {original.__name__} as accelerate left it; got a {type(module).__name__} (was its "
                "class changed since? change it back, restore, and change it again)"
            )
        for name in [name for name in module.__dict__ if name.startswith("_genkernels_")]:
            del module.__dict__[name]


def _is_parametrized_swap(module: Any) -> bool:
    made = made_class(module._genkernels_kind, module._genkernels_original)
    return type(module).__bases__ == (made,) and _is_class_of_parametrizations(module)


def original_class(module: nn.Module) -> type[nn.Module]:
    if not isinstance(module, Swapped):
        return type(module)
    parametrized: type[nn.Module] | None = type(module).__dict__.get("_genkernels_parametrized")
    return module._genkernels_original if parametrized is None else parametrized


def is_one_tensor(args: tuple[Any, ...]) -> bool:
    """Whether a layer is called as usual; not so by a tracer, which hands over a stand-in."""
    return len(args) == 1 and isinstance(args[0], torch.Tensor)


def is_hooked(module: nn.Module) -> bool:
    """Whether a hook has to see this module's calls, which a fused pass does not make."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
