"""Row and Diagonal LSTM layers that loop over rows or columns in Python.

The interface that is looked for: a module that maps [N, C, H, W] to [N, h, H, W], is called with that one tensor, and
has exactly two children with parameters, and none of its own:

* an input-to-state part that maps [N, C, H, W] to [N, 4h, H, W], with one convolution weight (a ``Conv2d``, a masked
  one, a wrapper), and
* a state-to-state part, an ``nn.Conv1d``: ``Conv1d(h, 4h, 3, padding=1)`` along the row above for a Row LSTM;
  ``Conv1d(h, 4h, 2, bias=False)`` along a column of the skewed map, padded on top, for one direction of a Diagonal
  LSTM. (In the skewed map a bias would fill the cells beside the image, and what is in them flows into the image.)

State and cell begin as zeros; i, f, o are sigmoids, g is a tanh; ``c = f * c + i * g``, ``h = o * tanh(c)``. Names are
free, and so is the order of the four gates, which is found by trying. The input-to-state part goes on being called as
it is (and is swapped by itself where it is a masked convolution); the loop becomes one operator. A bidirectional layer
is two such modules and whatever their parent does with their results; each becomes one operator.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.wavefront_lstm.converters import GATES, state_from_conv1d
from .proof import CannotRunError, NotEqualError, first_line, prove, random_input
from .swap import Swapped, is_hooked, is_one_tensor, swap, why_weight_is_computed
from .tracing import state_of


@dataclass(frozen=True)
class LoopPlan:
    """Names of the two parts, the front ("row", "diagonal"), the order of the gates, the dtype under autocast."""

    input_part: str
    state_part: str
    front: str
    gate_order: str
    keeps_dtype: bool

    def __str__(self) -> str:
        return f"{'Row' if self.front == 'row' else 'Diagonal'} LSTM, gates in the order {', '.join(self.gate_order)}"


class AcceleratedLoop(Swapped):
    """The loop of a recognised layer as one operator."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self._genkernels_plan
        state = None if plan is None else getattr(self, plan.state_part)
        if type(state) is not nn.Conv1d or kwargs or not is_one_tensor(args) or is_hooked(state):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        gates = getattr(self, plan.input_part)(args[0])
        if state.bias is not None:
            gates = gates + state.bias.view(-1, 1, 1)
        if plan.gate_order != GATES:
            blocks = dict(zip(plan.gate_order, gates.chunk(4, -3), strict=True))
            gates = torch.cat([blocks[gate] for gate in GATES], -3)  # the batch in its place, as the sampler needs it
        weight = state_from_conv1d(state.weight, front=plan.front, gate_order=plan.gate_order)
        run = ops.row_lstm if plan.front == "row" else ops.diagonal_lstm
        y = run(gates, weight)
        return y.to(args[0].dtype) if plan.keeps_dtype else y


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
    try:
        keeps_dtype = _keeps_dtype(module, x)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        return f"it could not be tried: {first_line(error)}"
    if keeps_dtype is None:
        return "its forward changes its attributes"
    reason = ""
    with torch.random.fork_rng(devices=[]):
        for order in itertools.permutations(GATES):
            plan = LoopPlan(*parts, front, "".join(order), keeps_dtype)
            try:
                prove(module, lambda copy, plan=plan: swap(copy, AcceleratedLoop, plan), [x])  # type: ignore[misc]
            except CannotRunError as error:
                reason = str(error)
                break
            except NotEqualError as error:
                reason = str(error)
            else:
                return plan
    if front == "diagonal" and state.bias is not None:
        reason += "; the bias of its state-to-state part reaches cells beside the image"
    return f"no order of the gates makes it a {front} LSTM ({reason})"


def _keeps_dtype(module: nn.Module, x: Tensor) -> bool | None:
    """Whether it gives the dtype of its input under autocast too; None where a call leaves something behind."""
    twin = copy.deepcopy(module).float().eval()
    before = state_of(twin)
    with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16):
        y = twin(x)
    return y.dtype == x.dtype if state_of(twin) == before else None
