"""Other people's masked convolutions: recognised by what they compute, whatever way they are written in.

A copy of the layer is asked for its response to a single lit pixel in each input channel. Compared with its weight,
the response shows which taps are live and where the kernel stands, so a ``mask`` of any name and shape, a cropped
kernel with padding on some sides, a wrapper with the convolution inside all look alike. What is found is a plan of
masked.py.

Weight norm and spectral norm may compute the weight: what the layer does with it is looked at on a copy in which it is
a plain parameter, and the operator reads the computed one, once a call.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..ops.masked_conv.mask import GROUP_LAYOUTS, MASK_TYPES, MaskSpec, mask_tensor
from .masked import MaskPlan, Path, Plan, RectanglePlan, get, rectangle
from .module_state import copy_of, state_of
from .swap import ComputedWeight, is_hooked, why_weight_is_computed
from .verify import first_line

_MOST_PARTS = 6  # modules in a wrapper
_MOST_GROUPS = 64
_HOOKED = "hooks on the module inside would not be called"
_OLD_STYLE = (WeightNorm, SpectralNorm)


def is_candidate(module: nn.Module) -> bool:
    """Whether a module holds one convolution weight, perhaps a bias, and little else."""
    if type(module).forward in (nn.Conv2d.forward, nn.ConvTranspose2d.forward) and not _extras(module):
        return False
    if type(module).__module__.startswith("genkernels.") or isinstance(module, (nn.ModuleDict, nn.ModuleList)):
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
    weights = [path for path, p in _trained(module) if p.dim() == 4]
    return len(weights) == 1 and bool(_extras(module) or type(module) is not nn.Sequential)


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


def why_not_tried(module: nn.Module) -> str | None:
    """For a module that holds a mask beside a convolution's weight: why it is no layer of the kind that is tried."""
    if type(module).__module__.startswith("genkernels.") or not _holds_a_mask(module):
        return None
    arguments = _arguments(module, required=False)
    if arguments > 1:
        return f"its forward takes {arguments} arguments"
    weights = sum(p.dim() == 4 for _, p in _trained(module))
    if weights != 1:
        return f"it holds {weights} weights of convolutions; a mask is looked for in layers with one"
    return "it holds more than a convolution with its weight and bias"


def _holds_a_mask(module: nn.Module) -> bool:
    """Whether a tensor of zeros and ones in it fits a kernel in it, its own or that of a convolution inside."""
    inside = [part for part in module.children() if type(part).forward is nn.Conv2d.forward and not _extras(part)]
    weights = [p for part in (module, *inside) for p in part.parameters(recurse=False) if p.dim() == 4]
    own = [value for path, value in _extras(module) if len(path) == 1 and value.dim() >= 2] if weights else []
    for mask in own:
        fits = any(_fits(mask, weight) for weight in weights if weight is not mask)
        if fits and bool(((mask == 0) | (mask == 1)).all()) and 0 < int(mask.count_nonzero()) < mask.numel():
            return True
    return False


def _fits(mask: Tensor, weight: Tensor) -> bool:
    sizes = zip(reversed(mask.shape), reversed(weight.shape), strict=False)
    return mask.dim() <= 4 and mask.shape[-2:] == weight.shape[-2:] and all(size in (1, whole) for size, whole in sizes)


def _arguments(module: nn.Module, *, required: bool) -> int:
    """How many arguments a forward takes by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # it is nothing that Python can look into
        return 1
    return sum(p.kind in kinds and not (required and p.default is not inspect.Parameter.empty) for p in parameters)


def _owners(module: nn.Module) -> Iterator[tuple[Path, nn.Module]]:
    for name, part in module.named_modules():
        yield tuple(name.split(".")) if name else (), part


def _extras(module: nn.Module) -> list[tuple[Path, Tensor]]:
    """Tensors from which a mask may be made: buffers, plain attributes and parameters that are frozen masks."""
    found = []
    for path, part in _owners(module):
        values = {**part.__dict__, **part._buffers, **part._parameters}
        found += [
            ((*path, name), value)
            for name, value in values.items()
            if isinstance(value, Tensor) and (not isinstance(value, nn.Parameter) or _is_mask(value))
        ]
    return found


def has_extras(module: nn.Module) -> bool:
    """Whether there is anything that a mask may be made from, beside what a weight is computed from."""
    plain = module if why_weight_is_computed(module) is None else with_plain_weight(module)
    return bool(_extras(module if plain is None else plain))


def _trained(module: nn.Module) -> list[tuple[Path, nn.Parameter]]:
    """Weights and biases: the parameters that are no masks."""
    return [(tuple(name.split(".")), p) for name, p in module.named_parameters() if not _is_mask(p)]


def _is_mask(p: nn.Parameter) -> bool:
    """Some keep their mask as a parameter without gradient; a frozen weight does not hold zeros and ones alone."""
    if p.requires_grad or p.dim() < 2 or p.is_meta:
        return False
    return bool(((p == 0) | (p == 1)).all())


def recognise(module: nn.Module) -> Plan | str | None:
    """A plan; the reason why there is none; or None for something that is no masked convolution at all.

    Raises nothing: what cannot be looked at is left, with the reason.
    """
    computed = why_weight_is_computed(module)
    if computed is None:
        return _recognise(module)
    plain = None if is_computed_alone(module) else with_plain_weight(module)
    if plain is None:
        return computed
    plan = _recognise(plain)
    if plan is None:
        return computed
    if isinstance(plan, str):
        return ComputedWeight(plan)
    if any(is_hooked(get(module, path)) for path in plan.parts):
        return ComputedWeight(_HOOKED)
    if writes_its_weight(plain, plan):
        return ComputedWeight(f"it writes zeros into its weight, which does not last: {computed}")
    return replace(plan, computed=True)


def _recognise(module: nn.Module) -> Plan | str | None:
    named = _trained(module)
    weights = [(path, p) for path, p in named if p.dim() == 4]
    biases = [(path, p) for path, p in named if p.dim() == 1]
    if len(weights) != 1 or len(biases) > 1 or len(named) != 1 + len(biases):
        return None
    path = weights[0][0]
    owner = get(module, path[:-1])
    for name, wanted in (("groups", 1), ("stride", (1, 1)), ("padding_mode", "zeros")):
        value = getattr(owner, name, wanted)
        if (value, value) == wanted or value == wanted:
            continue
        return f"{name} is {value!r}; the operator takes {wanted!r} only"
    dilation = getattr(owner, "dilation", (1, 1))
    pair = (dilation, dilation) if isinstance(dilation, int) else tuple(dilation)
    inner = [(p, part) for p, part in _owners(module) if p]
    for _, part in inner:
        if is_hooked(part):
            return _HOOKED
    arguments = _arguments(module, required=True)
    if arguments > 1:
        return f"its forward takes {arguments} arguments"
    response: tuple[Tensor, tuple[int, int]] | str = ""
    # Some make tensors of their own dtype, or cast what they are given: rounding is then part of what is seen.
    for dtype in dict.fromkeys((torch.float64, weights[0][1].dtype)):
        try:
            response = _response(module, path, biases[0][0] if biases else None, pair, dtype)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            response = f"it could not be tried: {first_line(error)}"
        if not isinstance(response, str):
            break
    if isinstance(response, str):
        return response
    mask, anchor = response
    bias, parts = biases[0][0] if biases else None, tuple(p for p, _ in inner)
    return _plan(path, bias, mask, anchor, pair, _extras(module), parts)


def _response(
    module: nn.Module, path: Path, bias: Path | None, dilation: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, tuple[int, int]] | str:
    """The mask of the layer's weight, and the kernel position that stands at the pixel itself."""
    zero = _ROUNDING.get(dtype, 0.0)
    twin = copy.deepcopy(module).cpu().to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    weight = get(twin, path)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        values = (torch.rand(weight.shape, generator=generator, dtype=torch.float64) + 0.5).to(dtype)
        weight.data.copy_(values)
        if bias is not None:
            get(twin, bias).data.copy_(torch.rand(weight.shape[0], generator=generator, dtype=torch.float64))
        out, inputs, height, width = weight.shape
        reach = max(height * dilation[0], width * dilation[1]) + 1
        size = 2 * reach + 1
        lit = torch.zeros(inputs + 1, inputs, size, size, dtype=dtype)
        lit[torch.arange(inputs), torch.arange(inputs), reach, reach] = 1
        before = state_of(twin, parameters=False)  # many write zeros into their weight
        answer = twin.forward(lit)
        if state_of(twin, parameters=False) != before:
            return "its forward changes its attributes"
        if not isinstance(answer, Tensor) or answer.shape != (inputs + 1, out, size, size):
            return "it does not keep the size of the image, as a masked convolution does"
        answer, twice = answer.double(), twin.forward(2 * lit).double()
        if bool((twice - answer[-1:] - 2 * (answer - answer[-1:])).abs().max() > 4 * zero):
            return "it is not linear: something other than a convolution happens in it"
        # [out, in, dy, dx]: what a pixel sees at a distance; the answer shows where a pixel is seen from
        seen = (answer[:-1] - answer[-1:]).transpose(0, 1).flip(2, 3)
    for row in range(height + 1):
        for column in range(width + 1):
            rows = [reach + (r - row) * dilation[0] for r in range(height)]
            columns = [reach + (c - column) * dilation[1] for c in range(width)]
            taps = seen[:, :, rows][:, :, :, columns]
            live = taps.abs() > zero
            whole = int((seen.abs() > zero).sum()) == int(live.sum())
            if whole and bool(live.any()) and bool((taps - values * live).abs().max() <= zero):
                return live, (row, column)
    return "its result is not a convolution with a part of its weight"


# What rounding may leave of a difference between sums of a few numbers up to 2; weights are 0.5 at least.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def _plan(
    weight: Path, bias: Path | None, mask: Tensor, anchor: tuple[int, int], dilation: tuple[int, int],
    extras: list[tuple[Path, Tensor]], parts: tuple[Path, ...],
) -> Plan | str | None:  # fmt: skip
    out, inputs, height, width = mask.shape
    if bool(mask.all()):
        if not extras:
            return None if anchor == (height // 2, width // 2) else "all taps of its cropped kernel are live: no waste"
        return "all its taps are live: there is nothing to skip"
    common: dict[str, Any] = {
        "weight": weight, "bias": bias, "dilation": dilation, "parts": parts,
        "masks": tuple((path, value.detach().cpu().clone()) for path, value in extras),
    }  # fmt: skip
    half = [max(at, size - 1 - at) for at, size in zip(anchor, (height, width), strict=True)]
    top, left = half[0] - anchor[0], half[1] - anchor[1]
    crop = (left, 2 * half[1] + 1 - width - left, top, 2 * half[0] + 1 - height - top)
    whole = F.pad(mask.float(), crop)
    kernel = (2 * half[0] + 1, 2 * half[1] + 1)
    for groups in range(1, min(out, inputs, _MOST_GROUPS) + 1):
        for layout in GROUP_LAYOUTS if groups > 1 else GROUP_LAYOUTS[:1]:
            for mask_type in MASK_TYPES:
                spec = MaskSpec(out, inputs, kernel, mask_type, groups, layout)
                if torch.equal(mask_tensor(spec), whole):
                    return MaskPlan(**common, spec=spec, crop=crop)
    rectangle = _rectangle_of(mask)
    if rectangle is not None:
        dead = out * (height * width - int(mask[0, 0].sum()))
        return _rectangle_plan({**common, "dead": dead}, (height, width), *rectangle, anchor, dilation)
    centre, row = half[1], half[0]
    if bool(whole[:, :, row + 1 :].any()) or bool(whole[:, :, row, centre + 1 :].any()):
        return "its mask shows pixels that come later: it is not causal"
    return "its mask is none that the kernel knows"


def _rectangle_of(mask: Tensor) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The rows and the columns, from and to, that hold all live taps and no other; None where there are no such."""
    live = mask[0, 0]
    rows, columns = live.any(1).nonzero(), live.any(0).nonzero()
    if not len(rows):
        return None
    found = (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)
    same = bool((mask == rectangle((mask.shape[2], mask.shape[3]), *found)).all())
    return found if same else None


def _rectangle_plan(
    common: dict[str, Any], shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int],
    anchor: tuple[int, int], dilation: tuple[int, int],
) -> RectanglePlan:  # fmt: skip
    padding, pad, whole = [], [], []
    for size, (start, stop), at, step in zip(shape, (rows, columns), anchor, dilation, strict=True):
        before, after = (at - start) * step, (stop - 1 - at) * step
        same = before == after
        padding.append(before if same else 0)
        pad.append((0, 0) if same else (before, after))
        whole.append(at * step if 2 * at == size - 1 else None)
    return RectanglePlan(
        **common, shape=shape, rows=rows, columns=columns, padding=(padding[0], padding[1]), pad=(*pad[1], *pad[0]),
        whole=None if whole[0] is None or whole[1] is None else (whole[0], whole[1]),
    )  # fmt: skip


def writes_its_weight(module: nn.Module, plan: Plan) -> bool:
    twin = copy.deepcopy(module)
    weight = get(twin, plan.weight)
    with torch.no_grad():
        weight.data.fill_(1)
        twin.forward(torch.zeros(1, weight.shape[1], 4, 4).to(weight))
        return bool((weight != 1).any())
