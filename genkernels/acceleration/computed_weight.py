"""Weights that something computes in each pass: weight norm, spectral norm, pruning, parametrizations, old and new."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .module_state import copy_of
from .report import Reason

_OLD_STYLE = (WeightNorm, SpectralNorm)


class ComputedWeight(Reason):
    """A module is left because its weight is computed in each pass; and so are the modules inside it."""


def why_weight_is_computed(module: nn.Module) -> ComputedWeight | None:
    for part in module.modules():
        if nn.utils.parametrize.is_parametrized(part):
            return ComputedWeight("a parametrization computes its weight")
        for name, _ in part.named_parameters(recurse=False):
            if name in ("weight_g", "weight_v"):
                return ComputedWeight("weight norm computes its weight")
            if name == "weight_orig":
                return ComputedWeight("spectral norm or pruning computes its weight")
    return None


def is_computed_alone(module: nn.Module) -> bool:
    """Whether it is a convolution as it comes, but that something computes its weight."""
    return type(module).forward is nn.Conv2d.forward and why_weight_is_computed(module) is not None


def with_plain_weight(module: nn.Module) -> nn.Module | None:
    """A copy in which the weight that weight norm or its like computes is a parameter; None where that is not all."""
    twin = copy_of(module)
    for part in twin.modules():
        hooks = [hook for hook in part._forward_pre_hooks.values() if isinstance(hook, _OLD_STYLE)]
        if nn.utils.parametrize.is_parametrized(part):
            names = list(part.parametrizations)  # type: ignore[arg-type]
        else:
            names = [hook.name for hook in hooks]
        if not names:
            continue
        if names != ["weight"] or next(part.parameters(), None) is None:
            return None
        if hooks:
            remove = nn.utils.remove_weight_norm if isinstance(hooks[0], WeightNorm) else nn.utils.remove_spectral_norm
            remove(part)
            continue
        # As remove_parametrizations does; that would take the property from the class, which the original shares.
        with torch.no_grad():
            value = part.weight.detach().clone()  # type: ignore[operator]
        del part.parametrizations
        part.__class__ = type(part).__bases__[0]
        part.weight = nn.Parameter(value)
    return twin if why_weight_is_computed(twin) is None else None
