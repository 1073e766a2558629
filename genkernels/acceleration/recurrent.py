"""Row and Diagonal LSTM layers that loop over rows or columns in Python, as one operator.

The interface that is looked for: a module that maps [N, C, H, W] to [N, h, H, W], is called with that one tensor, and
has exactly two children with parameters, and none of its own:

* an input-to-state part that maps [N, C, H, W] to [N, 4h, H, W], with one convolution weight (a ``Conv2d``, a masked
  one, a wrapper), and
* a state-to-state part: ``Conv1d(h, 4h, 3, padding=1)`` along the row above for a Row LSTM; ``Conv1d(h, 4h, 2)`` along
  a column of the skewed map, padded on top, for one direction of a Diagonal LSTM. Or a ``Conv2d`` that does the same:
  of kernel (1, 3) on rows [N, h, 1, W], of kernel (2, 1) or (1, 2) on columns [N, h, H, 1] or [N, h, 1, H].

State and cell begin as zeros; i, f, o are sigmoids, g is a tanh; ``c = f * c + i * g``, ``h = o * tanh(c)``. Names are
free, and so is the order of the four gates, which is found by trying. The input-to-state part goes on being called as
it is (and is swapped by itself where it is a masked convolution); the loop becomes one operator. A bidirectional layer
is two such modules and whatever their parent does with their results; each becomes one operator.

A loop may make its tensors in a dtype of its own (``torch.zeros(n, h, w)``, ``x.float()``). It is then checked in the
dtype that the model has, and once the model has another one the loop itself runs again.

In the skewed map a bias fills the cells beside the image. Where these are neither zeroed nor masked, what is in them
flows into the image from the left. It depends on the biases and the weight alone, and is computed by the same operator,
as columns before the image (H - 1 of them; the loop computes them too).

An initial state that is learned is left: the operator begins with zeros.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.wavefront_lstm.converters import GATES, state_from_conv1d
from .computed_weight import why_weight_is_computed
from .mask_candidates import is_own
from .module_state import state_of
from .report import Reason, Report
from .swap import Swapped, is_hooked, is_one_tensor, swap, unswap, why_no_swap
from .verify import CannotRunError, NotEquivalentError, check_equivalence, first_line, random_input

_STATE_PARTS = (nn.Conv1d, nn.Conv2d)
# What somebody's forward may raise on a random input.
_TROUBLE = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)


@dataclass(frozen=True)
class LoopPlan:
    """What the loop of a layer is.

    Attributes:
        input_part, state_part: names of the two parts.
        front: "row" or "diagonal".
        gate_order: the letters i, f, g, o in the layer's order.
        beside: what fills the cells beside the image of a skewed map: nothing (""), the bias of the state-to-state
            part ("state"), or that and the bias of an input-to-state part that is called on the skewed map ("input").
        autocast: what dtype it gives under autocast: of its "input", always "float32", or the "autocast" one.
        only: the one dtype of parameters in which this was checked; None for any.
    """

    input_part: str
    state_part: str
    front: str
    gate_order: str
    beside: str = ""
    autocast: str = "autocast"
    only: torch.dtype | None = None

    def __str__(self) -> str:
        return f"{'Row' if self.front == 'row' else 'Diagonal'} LSTM, gates in the order {', '.join(self.gate_order)}"


class AcceleratedLoop(Swapped):
    """The loop of a recognised layer as one operator."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self._genkernels_plan
        state: Any = None if plan is None else getattr(self, plan.state_part)
        if type(state) not in _STATE_PARTS or kwargs or not is_one_tensor(args) or is_hooked(state):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        (x,) = args
        mixed = torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)
        if plan.only is not None and (state.weight.dtype != plan.only or (x.dtype != plan.only and not mixed)):
            return super().forward(x)  # type: ignore[misc]
        before = max(x.shape[-2] - 1, 0) if plan.beside else 0  # columns
        pad = (before, 0)
        if plan.beside == "input":
            gates = getattr(self, plan.input_part)(F.pad(x, pad))
        else:
            gates = getattr(self, plan.input_part)(x)
            gates = F.pad(gates, pad) if before else gates
        if state.bias is not None:
            gates = gates + state.bias.view(-1, 1, 1)
        if before:
            gates = gates.masked_fill(_not_skewed(gates), 0)
        if plan.gate_order != GATES:
            blocks = dict(zip(plan.gate_order, gates.chunk(4, -3), strict=True))
            gates = torch.cat([blocks[gate] for gate in GATES], -3)  # the batch in its place, as the sampler needs it
        weight = state_from_conv1d(state.weight.flatten(2), front=plan.front, gate_order=plan.gate_order)
        run = ops.row_lstm if plan.front == "row" else ops.diagonal_lstm
        y = run(gates, weight)
        y = y[..., before:] if before else y
        if plan.autocast == "float32" and mixed:
            return y.float()
        return y.to(x.dtype) if plan.autocast == "input" else y


def _not_skewed(gates: Tensor) -> Tensor:
    """The pixels of H - 1 columns before an image that the skewed map has no cell for: zeros leave the state zero."""
    height, width = gates.shape[-2:]
    row, column = torch.arange(height, device=gates.device), torch.arange(width, device=gates.device)
    return row[:, None] + column < height - 1


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
    if type(state) not in _STATE_PARTS:
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
