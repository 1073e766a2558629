"""Derivatives of a recurrent layer, first and higher, backward and forward mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...masked_conv import derivatives as conv
from .. import reference as lstm
from ..recurrence import RecurrenceOps
from ..schema import accumulator
from .schema import PARAMETERS, backward_ops, by_walk, empty_hidden, forward_ops, geometries, library


def _gradients(grad_hidden: Tensor, inputs: Sequence[Any], options: Sequence[Any], _: int) -> list[Tensor | None]:
    """Of x and all parameters: the walk in plain PyTorch, the convolution by its own differentiable operators."""
    mask_type, front, taps = options
    dtype = accumulator(grad_hidden.dtype)
    wide: list[Any] = [None if t is None else t.to(dtype) for t in (grad_hidden, *inputs)]
    grad, x, *parameters = wide
    grad_x = torch.zeros_like(x)
    results: list[Tensor | None] = []
    each = by_walk(parameters)
    for (weight, bias, *state), geometry in zip(each, geometries(len(each), front, taps), strict=True):
        convolution = (mask_type, 1, "blocks", [1, 1], "none")
        with torch.autocast(x.device.type, enabled=False):
            gates = conv.forward(x, weight, bias, *convolution)
            _, trace = lstm.forward(gates, *state, geometry)
            own = moved_up(grad) if geometry.mirrored else grad
            to_gates, *to_state = lstm.backward(own, *state, trace, geometry)
            to_x, *to_input = conv.backward(to_gates, x, weight, None, *convolution, [True] * 3)
        grad_x = grad_x + to_x
        results += [*to_input, *to_state]
    return [grad_x, *results]


def moved_up(grad_hidden: Tensor) -> Tensor:
    """The gradient of what was moved a row down, its last row dropped."""
    return F.pad(grad_hidden[:, :, 1:], (0, 0, 0, 1)) if grad_hidden.shape[2] else grad_hidden


layers = {
    count: RecurrenceOps(
        library,
        forward_ops[count],
        backward_ops[count],
        count=1,  # both directions read x: to autograd they are one recurrence
        size=1 + count * len(PARAMETERS),
        gradients=_gradients,
        empty_result=lambda inputs: empty_hidden(inputs[0], inputs[1]),
    )
    for count in forward_ops
}
