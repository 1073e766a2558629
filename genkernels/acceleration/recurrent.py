"""Row and Diagonal LSTM layers that loop over rows or columns in Python.

The interface that is looked for: a module with exactly two children that have parameters, and none of its own,

* an input-to-state part, a ``Conv2d`` (or a masked one) from C to 4h channels that keeps the size of the image, and
* a state-to-state part, a ``Conv1d(h, 4h, 3, padding=1)`` for a Row LSTM, ``Conv1d(h, 4h, 2)`` over rows, padded on
  top, for one direction of a Diagonal LSTM,

which maps [N, C, H, W] to [N, h, H, W]. The order of the four gates may be any: it is found by trying. The
input-to-state part goes on being called as it is; the loop becomes one operator.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import ops
from ..ops.wavefront_lstm.converters import GATES, reorder_gates, state_from_conv1d
from .proof import NotEqualError, prove, random_input
from .swap import Swapped, is_hooked, swap, why_weight_is_computed


@dataclass(frozen=True)
class LoopPlan:
    """Names of the two parts, the front ("row", "diagonal") and the order of the gates."""

    input_part: str
    state_part: str
    front: str
    gate_order: str

    def __str__(self) -> str:
        return f"{'Row' if self.front == 'row' else 'Diagonal'} LSTM, gates in the order {', '.join(self.gate_order)}"


class AcceleratedLoop(Swapped):
    """The loop of a recognised layer as one operator."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self._genkernels_plan
        state = None if plan is None else getattr(self, plan.state_part)
        if state is None or len(args) != 1 or kwargs or type(state) is not nn.Conv1d or is_hooked(state):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        gates = getattr(self, plan.input_part)(args[0])
        if state.bias is not None:
            gates = gates + state.bias.view(-1, 1, 1)
        if plan.gate_order != GATES:
            gates = reorder_gates(gates.transpose(0, -3), plan.gate_order).transpose(0, -3)
        weight = state_from_conv1d(state.weight, front=plan.front, gate_order=plan.gate_order)
        run = ops.row_lstm if plan.front == "row" else ops.diagonal_lstm
        return run(gates, weight)


def parts_of(module: nn.Module) -> tuple[str, str] | None:
    """Names of the input-to-state and the state-to-state part, or None where this is no such layer."""
    if type(module).__module__.startswith("genkernels.") or next(module.parameters(recurse=False), None) is not None:
        return None
    children = [(name, child) for name, child in module.named_children() if next(child.parameters(), None) is not None]
    loops = [(name, child) for name, child in children if type(child) is nn.Conv1d]
    if len(children) != 2 or len(loops) != 1:
        return None
    state_name, state = loops[0]
    (input_name, convolution), = [pair for pair in children if pair[0] != state_name]  # fmt: skip
    weights = [p for p in convolution.parameters() if p.dim() == 4]
    fits = state.out_channels == 4 * state.in_channels and state.kernel_size[0] in (2, 3)
    if not fits or len(weights) != 1 or weights[0].shape[0] != state.out_channels:
        return None
    return input_name, state_name


def recognise(module: nn.Module) -> LoopPlan | str | None:
    """A plan that has been proven, the reason why there is none, or None for other modules."""
    parts = parts_of(module)
    if parts is None:
        return None
    computed = why_weight_is_computed(module)
    if computed is not None:
        return computed
    state = getattr(module, parts[1])
    if is_hooked(state):
        return "hooks on its state-to-state part would not be called"
    front = "row" if state.kernel_size == (3,) else "diagonal"
    weight = next(p for p in getattr(module, parts[0]).parameters() if p.dim() == 4)
    x = random_input(module, (2, weight.shape[1], 3, 4))
    reason = ""
    with torch.random.fork_rng(devices=[]):
        for order in itertools.permutations(GATES):
            plan = LoopPlan(*parts, front, "".join(order))
            try:
                prove(module, lambda copy, plan=plan: swap(copy, AcceleratedLoop, plan), [x])  # type: ignore[misc]
            except NotEqualError as error:
                reason = str(error)
                if "could not be run" in reason:
                    break
            else:
                return plan
    return f"no order of the gates makes it a {front} LSTM ({reason})"
