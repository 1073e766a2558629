"""Masked convolutions of an existing model: recognised by what they compute, whatever way they are written in.

A copy of the layer is given images with a single lit pixel, one for each input channel. Compared with its weight, the
response shows which taps are live and where the kernel stands, so a ``mask`` of any name and shape, a cropped kernel
with padding on some sides, a wrapper with the convolution inside all look alike. What is found is a plan of masked.py.

Weight norm and spectral norm may compute the weight: what the layer does with it is looked at on a copy in which it is
a plain parameter, and the operator reads the computed one, once a call.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.masked_conv.mask import GROUP_LAYOUTS, MASK_TYPES, MaskSpec, mask_tensor
from .computed_weight import ComputedWeight, is_computed_alone, why_weight_is_computed, with_plain_weight
from .mask_candidates import is_candidate, looks_masked, tensors_beside, trained, why_arguments, why_not_tried
from .masked import AcceleratedMaskedConv2d, MaskPlan, Plan, RectanglePlan, get, rectangle, zero_masked_taps
from .module_state import Path, copy_of, places_of, state_of
from .report import Reason, Report
from .swap import is_hooked, swap, why_no_swap
from .verify import NotEquivalentError, check_equivalence, first_line, random_input

_MOST_GROUPS = 64
_HOOKED = "hooks on the module inside would not be called"

# What rounding may leave of a difference between sums of a few numbers up to 2; weights are 0.5 at least.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def attempt(name: str, module: nn.Module, report: Report, owners: Counter[int]) -> list[nn.Module]:
    """Swaps a masked convolution, or notes why it is left.

    Args:
        owners: by id of a parameter, how many modules of the model hold it.

    Returns:
        The modules that need no further look.
    """
    plan = (why_no_swap(module) or recognise(module)) if is_candidate(module) else None
    if isinstance(plan, Plan):
        plan = _checked(module, plan, owners)
    if isinstance(plan, Plan):
        if plan.writes:
            zero_masked_taps(module, plan)
        swap(module, AcceleratedMaskedConv2d, plan)
        report.note_swapped(name, type(module).__name__, plan.operator, str(plan))
        return list(module.modules())
    untried = why_not_tried(module)
    is_masked = isinstance(plan, _SharedWeight) or (plan is not None and looks_masked(module))
    reason = plan or untried
    if reason is not None and (is_masked or untried is not None):
        report.note_left(name, type(module).__name__, reason)
    return list(module.modules()) if is_masked and isinstance(plan, ComputedWeight) else []


class _SharedWeight(Reason):
    """A masked convolution beyond doubt, whose weight has another reader."""


def _checked(module: nn.Module, plan: Plan, owners: Counter[int]) -> Plan | Reason:
    """The plan, if the swapped layer computes what the layer does."""
    twin = copy_of(module)  # to read a computed weight may change what it is computed from
    in_channels = get(twin, plan.weight).shape[1]
    height, width = (k * d for k, d in zip(plan.kernel, plan.dilation, strict=True))
    live = {".".join(plan.weight): plan.live()}
    try:
        for size in ((height + 1, width + 3), (height + 2, max(width // 2, 2))):
            x = random_input(module, (2, in_channels, *size))
            check_equivalence(copy_of(module), lambda taken: swap(taken, AcceleratedMaskedConv2d, plan), [x], live=live)
    except NotEquivalentError as error:
        return Reason(str(error))
    if plan.computed or not _writes_its_weight(module, plan):
        return plan
    if owners[id(get(module, plan.weight))] > 1:
        return _SharedWeight("its weight, into which it writes zeros, is shared")
    return replace(plan, writes=True)


def recognise(module: nn.Module) -> Plan | Reason | None:
    """A plan; the reason why there is none; or None for something that is no masked convolution at all.

    Raises nothing: what cannot be looked at is left, with the reason.
    """
    computed = why_weight_is_computed(module)
    if computed is None:
        return _recognise(module)
    plain = None if is_computed_alone(module) else with_plain_weight(module)
    plan = None if plain is None else _recognise(plain)
    if plain is None or plan is None:
        return computed
    if isinstance(plan, Reason):
        return ComputedWeight(plan.text)
    if any(is_hooked(get(module, path)) for path in plan.parts):
        return ComputedWeight(_HOOKED)
    if _writes_its_weight(plain, plan):
        return ComputedWeight(f"it writes zeros into its weight, which does not last: {computed}")
    return replace(plan, computed=True)


def _recognise(module: nn.Module) -> Plan | Reason | None:
    parameters = trained(module)
    weights = [path for path, p in parameters if p.dim() == 4]
    biases = [path for path, p in parameters if p.dim() == 1]
    if len(weights) != 1 or len(biases) > 1 or len(parameters) != 1 + len(biases):
        return None
    weight, bias = weights[0], biases[0] if biases else None
    parts = tuple(path for path, _ in places_of(module) if path)
    reason = _why_no_operator(module, get(module, weight[:-1]), parts)
    if reason is not None:
        return reason
    dilation = getattr(get(module, weight[:-1]), "dilation", (1, 1))
    dilation = (dilation, dilation) if isinstance(dilation, int) else tuple(dilation)
    response: _Response | Reason = Reason("")
    # Some make tensors of their own dtype, or cast what they are given: rounding is then part of what is seen.
    for dtype in dict.fromkeys((torch.float64, get(module, weight).dtype)):
        try:
            response = _response(module, weight, bias, dilation, dtype)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            response = Reason(f"it could not be tried: {first_line(error)}")
        if isinstance(response, _Response):
            break
    if isinstance(response, Reason):
        return response
    beside = tensors_beside(module)
    if bool(response.live.all()):
        return _why_nothing_to_skip(response, holds_a_mask=bool(beside))
    masks = tuple((path, value.detach().cpu().clone()) for path, value in beside)
    common = {"weight": weight, "bias": bias, "dilation": dilation, "masks": masks, "parts": parts}
    return _mask_plan(response, common) or _rectangle_plan(response, common) or _why_no_plan(response)


def _why_no_operator(module: nn.Module, owner: nn.Module, parts: tuple[Path, ...]) -> Reason | None:
    """The setting of the convolution, ``owner`` of the weight, or of what is around it that no operator has."""
    for name, wanted in (("groups", 1), ("stride", (1, 1)), ("padding_mode", "zeros")):
        value = getattr(owner, name, wanted)
        if (value, value) != wanted and value != wanted:
            return Reason(f"{name} is {value!r}; the operator takes {wanted!r} only")
    if any(is_hooked(get(module, path)) for path in parts):
        return Reason(_HOOKED)
    return why_arguments(module, required=True)


class _Response(NamedTuple):
    """What the response to a lit pixel shows.

    Attributes:
        live: the taps of the layer's weight that are live, [out, in, height, width].
        anchor: the kernel position that stands at the pixel itself.
        dilation: of the kernel.
    """

    live: Tensor
    anchor: tuple[int, int]
    dilation: tuple[int, int]


def _response(
    module: nn.Module, path: Path, bias: Path | None, dilation: tuple[int, int], dtype: torch.dtype
) -> _Response | Reason:
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
            return Reason("its forward changes its attributes")
        if not isinstance(answer, Tensor) or answer.shape != (inputs + 1, out, size, size):
            return Reason("it does not keep the size of the image, as a masked convolution does")
        answer, twice = answer.double(), twin.forward(2 * lit).double()
        if bool((twice - answer[-1:] - 2 * (answer - answer[-1:])).abs().max() > 4 * zero):
            return Reason("it is not linear: something other than a convolution happens in it")
        # [out, in, dy, dx]: what a pixel sees at a distance; the answer shows where a pixel is seen from
        seen = (answer[:-1] - answer[-1:]).transpose(0, 1).flip(2, 3)
        return _placed(seen, values, dilation, zero)


def _placed(seen: Tensor, weight: Tensor, dilation: tuple[int, int], zero: float) -> _Response | Reason:
    """The place of the kernel at which all that is seen are taps of the weight; ``zero`` is rounding."""
    height, width = weight.shape[2:]
    reach, everything = seen.shape[2] // 2, int((seen.abs() > zero).sum())
    for row in range(height + 1):
        for column in range(width + 1):
            rows = [reach + (r - row) * dilation[0] for r in range(height)]
            columns = [reach + (c - column) * dilation[1] for c in range(width)]
            taps = seen[:, :, rows][:, :, :, columns]
            live = taps.abs() > zero
            whole = everything == int(live.sum()) > 0
            if whole and bool((taps - weight * live).abs().max() <= zero):
                return _Response(live, (row, column), dilation)
    return Reason("its result is not a convolution with a part of its weight")


def _why_nothing_to_skip(response: _Response, *, holds_a_mask: bool) -> Reason | None:
    if holds_a_mask:
        return Reason("all its taps are live: there is nothing to skip")
    height, width = response.live.shape[2:]
    if response.anchor == (height // 2, width // 2):
        return None  # a convolution like any other
    return Reason("all taps of its cropped kernel are live: no waste")


def _centred(response: _Response) -> tuple[Tensor, tuple[int, int, int, int]]:
    """The live taps in an odd kernel around the pixel, and the zeros that it has more, as ``F.pad`` takes them."""
    (height, width), (row, column) = response.live.shape[2:], response.anchor
    half = max(row, height - 1 - row), max(column, width - 1 - column)
    top, left = half[0] - row, half[1] - column
    crop = (left, 2 * half[1] + 1 - width - left, top, 2 * half[0] + 1 - height - top)
    return F.pad(response.live.float(), crop), crop


def _mask_plan(response: _Response, common: dict[str, Any]) -> MaskPlan | None:
    whole, crop = _centred(response)
    out, inputs, height, width = whole.shape
    for groups in range(1, min(out, inputs, _MOST_GROUPS) + 1):
        for layout in GROUP_LAYOUTS if groups > 1 else GROUP_LAYOUTS[:1]:
            for mask_type in MASK_TYPES:
                spec = MaskSpec(out, inputs, (height, width), mask_type, groups, layout)
                if torch.equal(mask_tensor(spec), whole):
                    return MaskPlan(**common, spec=spec, crop=crop)
    return None


def _rectangle_plan(response: _Response, common: dict[str, Any]) -> RectanglePlan | None:
    """Where the rows and the columns, from and to, that hold live taps hold no others."""
    out, _, *shape = response.live.shape
    live = response.live[0, 0]
    if not bool(live.any()):
        return None
    rows, columns = ((int(at[0]), int(at[-1]) + 1) for at in (live.any(d).nonzero() for d in (1, 0)))
    height, width = shape
    if not bool((response.live == rectangle((height, width), rows, columns)).all()):
        return None
    padding, pad, whole = [], [], []
    for size, (start, stop), at, step in zip(shape, (rows, columns), response.anchor, response.dilation, strict=True):
        before, after = (at - start) * step, (stop - 1 - at) * step
        same = before == after
        padding.append(before if same else 0)
        pad.append((0, 0) if same else (before, after))
        whole.append(at * step if 2 * at == size - 1 else None)
    return RectanglePlan(
        **common, shape=(height, width), rows=rows, columns=columns, padding=(padding[0], padding[1]),
        pad=(*pad[1], *pad[0]), whole=None if whole[0] is None or whole[1] is None else (whole[0], whole[1]),
        dead=out * int((~live).sum()),
    )  # fmt: skip


def _why_no_plan(response: _Response) -> Reason:
    whole, _ = _centred(response)
    row, column = whole.shape[2] // 2, whole.shape[3] // 2
    if bool(whole[:, :, row + 1 :].any()) or bool(whole[:, :, row, column + 1 :].any()):
        return Reason("its mask shows pixels that come later: it is not causal")
    return Reason("its mask is none that the kernel has")


def _writes_its_weight(module: nn.Module, plan: Plan) -> bool:
    twin = copy.deepcopy(module)
    weight = get(twin, plan.weight)
    with torch.no_grad():
        weight.data.fill_(1)
        twin.forward(torch.zeros(1, weight.shape[1], 4, 4).to(weight))
        return bool((weight != 1).any())
