"""Candidates for a masked convolution: modules with one convolution weight and, somewhere, a tensor that may be a mask.

What else holds a mask beside a convolution's weight gets a line in the report, with the reason why it is not tried.
"""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from .computed_weight import is_computed_alone, why_weight_is_computed, with_plain_weight
from .module_state import Path, places_of
from .report import Reason

_MOST_PARTS = 6  # modules in a wrapper


def is_candidate(module: nn.Module) -> bool:
    """Whether a module holds one convolution weight, perhaps a bias, and little else."""
    if type(module).forward in (nn.Conv2d.forward, nn.ConvTranspose2d.forward) and not tensors_beside(module):
        return False
    if is_own(module) or isinstance(module, (nn.ModuleDict, nn.ModuleList)):
        return False
    if sum(1 for _ in module.modules()) > _MOST_PARTS:
        return False
    if why_weight_is_computed(module) is not None:
        if isinstance(module, nn.Conv2d):
            return True  # to be left with the reason, if nothing else
        plain = with_plain_weight(module)
        if plain is None:
            return False
        module = plain
    weights = [path for path, p in trained(module) if p.dim() == 4]
    return len(weights) == 1 and bool(tensors_beside(module) or type(module) is not nn.Sequential)


def is_own(module: nn.Module) -> bool:
    """Whether it is a layer of this package, which has its kernels already."""
    return type(module).__module__.startswith("genkernels.")


def looks_masked(module: nn.Module) -> bool:
    """Whether it, and no smaller part of it, holds what may be a mask: the rest has nothing to do with masks."""
    if isinstance(module, nn.Conv2d):
        return True
    plain = module if why_weight_is_computed(module) is None else with_plain_weight(module)
    inner = [part for part in module.modules() if part is not module and not is_computed_alone(part)]
    return bool(tensors_beside(module if plain is None else plain)) and not any(map(is_candidate, inner))


def why_not_tried(module: nn.Module) -> Reason | None:
    """For a module that holds a mask beside a convolution's weight: why it is no layer of the kind that is tried."""
    if is_own(module) or not _holds_a_mask(module):
        return None
    reason = why_arguments(module, required=False)
    if reason is not None:
        return reason
    weights = sum(p.dim() == 4 for _, p in trained(module))
    if weights != 1:
        return Reason(f"it holds {weights} weights of convolutions; a mask is looked for in layers with one")
    return Reason("it holds more than a convolution with its weight and bias")


def why_arguments(module: nn.Module, *, required: bool) -> Reason | None:
    """The reason where a forward takes more than one argument by position; ``required``: without a default."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # it is nothing that Python can look into
        return None
    count = sum(p.kind in kinds and not (required and p.default is not inspect.Parameter.empty) for p in parameters)
    return Reason(f"its forward takes {count} arguments") if count > 1 else None


def tensors_beside(module: nn.Module) -> list[tuple[Path, Tensor]]:
    """Tensors from which a mask may be made: buffers, plain attributes and parameters that are frozen masks."""
    found = []
    for path, part in places_of(module):
        values = {**part.__dict__, **part._buffers, **part._parameters}
        found += [
            ((*path, name), value)
            for name, value in values.items()
            if isinstance(value, Tensor) and (not isinstance(value, nn.Parameter) or _is_mask(value))
        ]
    return found


def trained(module: nn.Module) -> list[tuple[Path, nn.Parameter]]:
    """Weights and biases: the parameters that are no masks."""
    return [(tuple(name.split(".")), p) for name, p in module.named_parameters() if not _is_mask(p)]


def _is_mask(p: nn.Parameter) -> bool:
    """Some keep their mask as a parameter without gradient; a frozen weight does not hold zeros and ones alone."""
    if p.requires_grad or p.dim() < 2 or p.is_meta:
        return False
    return bool(((p == 0) | (p == 1)).all())


def _holds_a_mask(module: nn.Module) -> bool:
    """Whether a tensor of zeros and ones in it fits a kernel in it, its own or that of a convolution inside."""
    inside = [p for p in module.children() if type(p).forward is nn.Conv2d.forward and not tensors_beside(p)]
    weights = [p for part in (module, *inside) for p in part.parameters(recurse=False) if p.dim() == 4]
    own = [value for path, value in tensors_beside(module) if len(path) == 1 and value.dim() >= 2] if weights else []
    for mask in own:
        fits = any(_fits(mask, weight) for weight in weights if weight is not mask)
        if fits and bool(((mask == 0) | (mask == 1)).all()) and 0 < int(mask.count_nonzero()) < mask.numel():
            return True
    return False


def _fits(mask: Tensor, weight: Tensor) -> bool:
    sizes = zip(reversed(mask.shape), reversed(weight.shape), strict=False)
    return mask.dim() <= 4 and mask.shape[-2:] == weight.shape[-2:] and all(size in (1, whole) for size, whole in sizes)
