"""Recognition of Row and Diagonal LSTM loops: the parts, the order of the gates, and what is beside the image.

The interface that is looked for is described in recurrent.py. All orders of the gates are tried on one image, and the
nearest are checked.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.wavefront_lstm.converters import GATES
from .computed_weight import why_weight_is_computed
from .mask_candidates import is_own
from .module_state import state_of
from .recurrent import STATE_PARTS, AcceleratedLoop, LoopPlan
from .report import Reason, Report
from .swap import is_hooked, swap, unswap, why_no_swap
from .verify import CannotRunError, NotEquivalentError, check_equivalence, first_line, random_input

# What somebody's forward may raise on a random input.
_TROUBLE = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)


def attempt(name: str, module: nn.Module, report: Report) -> list[nn.Module]:
    """Swaps a loop that is a Row or Diagonal LSTM, or notes why it is left; the modules that need no further look."""
    plan = recognise(module)
    if plan is not None:
        plan = why_no_swap(module) or plan
    if isinstance(plan, Reason):
        report.note_left(name, type(module).__name__, plan)
    if not isinstance(plan, LoopPlan):
        return []
    swap(module, AcceleratedLoop, plan)
    report.note_swapped(name, type(module).__name__, f"{plan.front}_lstm", str(plan))
    input_part = module.get_submodule(plan.input_part)  # it goes on being called, and may be masked
    return [part for part in module.modules() if part is not input_part]


def parts_of(module: nn.Module) -> list[tuple[str, str]]:
    """Names of what may be the input-to-state and the state-to-state part; none where this is no such layer."""
    if is_own(module):
        return []
    children = [(name, child) for name, child in module.named_children() if next(child.parameters(), None) is not None]
    if len(children) != 2:
        return []
    return [(a[0], b[0]) for a, b in (children, children[::-1]) if _are_parts(a[1], b[1])]


def _are_parts(convolution: nn.Module, state: Any) -> bool:
    if type(state) not in STATE_PARTS:
        return False
    weights = [p for p in convolution.parameters() if p.dim() == 4]
    fits = state.out_channels == 4 * state.in_channels and _taps(state) in (2, 3)
    return fits and len(weights) == 1 and weights[0].shape[0] == state.out_channels


def _taps(state: Any) -> int:
    """The length of a kernel along one line, 0 for other kernels."""
    return max(state.kernel_size) if sorted(state.kernel_size)[:-1] in ([], [1]) else 0


def recognise(module: nn.Module) -> LoopPlan | Reason | None:
    """A plan that has been checked, the reason why there is none, or None for other modules."""
    reason = None
    for parts in parts_of(module):
        found = _recognise(module, *parts)
        if isinstance(found, LoopPlan):
            return found
        reason = reason or found
    return reason


def _recognise(module: nn.Module, input_part: str, state_part: str) -> LoopPlan | Reason | None:
    convolution, state = getattr(module, input_part), getattr(module, state_part)
    weight = next(p for p in convolution.parameters() if p.dim() == 4)
    x = random_input(module, (2, weight.shape[1], 3, 4))
    if type(state) is nn.Conv2d and not _loops(module, state_part, x):
        return None  # a convolution like any other
    computed = why_weight_is_computed(module)
    if computed is not None:
        return computed
    if is_hooked(state):
        return Reason("hooks on its state-to-state part would not be called")
    try:
        autocast = _autocast(module, x)
    except _TROUBLE as error:
        return Reason(f"it could not be tried: {first_line(error)}")
    if autocast is None:
        return Reason("its forward changes its attributes")
    front = "row" if _taps(state) == 3 else "diagonal"
    plan = LoopPlan(input_part, state_part, front, GATES, autocast=autocast)
    own = dict(module.named_parameters(recurse=False))
    if not own:
        return _find(module, plan, x)
    without = copy.deepcopy(module)
    for p in without.parameters(recurse=False):
        p.requires_grad_(False).zero_()
    found = _find(without, plan, x)
    names = ", ".join(own)
    if isinstance(found, LoopPlan) and _begins_with(module, found, x):
        return Reason(f"its initial state is learned ({names}); the operator begins with zeros")
    return Reason(f"the operator has no place for its own parameters ({names})")


def _find(module: nn.Module, plan: LoopPlan, x: Tensor) -> LoopPlan | Reason:
    """The order of the gates and what is beside the image, by trying; or the reason why nothing fits."""
    state, reason = getattr(module, plan.state_part), ""
    other = random_input(module, (2, x.shape[1], 5, 3))  # higher than wide, so more of what is beside the image
    with torch.random.fork_rng(devices=[]):
        for tried in _nearest(module, plan, x):

            def swapper(taken: nn.Module, tried: LoopPlan = tried) -> None:
                swap(taken, AcceleratedLoop, tried)

            try:
                in_float64 = [check_equivalence(module, swapper, [each], may_round=True) for each in (x, other)]
            except CannotRunError as error:
                reason = str(error)
                break
            except NotEquivalentError as error:
                reason = reason or str(error)
            else:
                return tried if all(in_float64) else replace(tried, only=state.weight.dtype)
    return Reason(f"no order of the gates makes it a {plan.front} LSTM ({reason})")


def _nearest(module: nn.Module, plan: LoopPlan, x: Tensor) -> list[LoopPlan]:
    """The plans whose output is that of the loop, or nearest to it: the others need no check."""
    twin = copy.deepcopy(module).float().eval()
    distances = {}
    with torch.no_grad():
        expected = twin(x.float())
        for beside, order in itertools.product(_fillings(module, plan), itertools.permutations(GATES)):
            tried = replace(plan, gate_order="".join(order), beside=beside)
            swap(twin, AcceleratedLoop, tried)
            try:
                got = twin(x.float())
            except _TROUBLE:
                got = None
            unswap(twin)
            fits = got is not None and got.shape == expected.shape
            distances[tried] = float((got - expected).norm()) if fits else torch.inf
    near = min(distances.values()) + 1e-4 * float(expected.norm())
    if not near < torch.inf:
        return [plan]  # its check has the reason
    return [tried for tried, distance in distances.items() if distance <= near]


def _fillings(module: nn.Module, plan: LoopPlan) -> Iterator[str]:
    """What may be beside the image: ``LoopPlan.beside``."""
    yield ""
    if plan.front == "diagonal":
        if getattr(module, plan.state_part).bias is not None:
            yield "state"
        if any(p.dim() == 1 for p in getattr(module, plan.input_part).parameters()):
            yield "input"


def _loops(module: nn.Module, name: str, x: Tensor) -> bool:
    """Whether one pass calls this child more than once."""
    calls: list[int] = []
    twin = copy.deepcopy(module).float().eval()
    getattr(twin, name).register_forward_hook(lambda *_: calls.append(1))
    # Whatever somebody's forward does with a random input.
    with suppress(Exception), torch.no_grad(), torch.random.fork_rng(devices=[]):
        twin(x)
    return len(calls) > 1


def _begins_with(module: nn.Module, plan: LoopPlan, x: Tensor) -> bool:
    """Whether the module's own parameters are a state before the first step and nothing else.

    Such a state goes on through forget gates, which are closed here, and the state-to-state part, which gives nothing.
    """
    twin = copy.deepcopy(module).float().eval()

    def close(_: nn.Module, __: Any, gates: Tensor) -> Tensor:
        shut = torch.tensor([-1e4 if gate == "f" else 0.0 for gate in plan.gate_order], device=gates.device)
        blocks = shut.repeat_interleave(gates.shape[1] // 4)
        return blocks.view(-1, *[1] * (gates.dim() - 2)).expand_as(gates)

    getattr(twin, plan.state_part).register_forward_hook(close)
    outputs = []
    with torch.no_grad():
        for _ in range(2):
            outputs.append(twin(x))
            for p in twin.parameters(recurse=False):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return torch.equal(*outputs)


def _autocast(module: nn.Module, x: Tensor) -> str | None:
    """``LoopPlan.autocast``; None where a call leaves something behind."""
    twin = copy.deepcopy(module).float().eval()
    before = state_of(twin)
    with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16):
        given = [twin(each).dtype for each in (x, x.bfloat16())]
    if state_of(twin) != before:
        return None
    if given == [torch.float32, torch.float32]:
        return "float32"
    return "input" if given[0] == torch.float32 else "autocast"
