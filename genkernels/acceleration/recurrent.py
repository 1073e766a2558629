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

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.wavefront_lstm.converters import GATES, state_from_conv1d
from .swap import Swapped, is_hooked, is_one_tensor

STATE_PARTS = (nn.Conv1d, nn.Conv2d)


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
        if type(state) not in STATE_PARTS or kwargs or not is_one_tensor(args) or is_hooked(state):
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
