"""Derivatives of the wavefront LSTM, first and higher, backward and forward mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import reference
from .geometry import Geometry
from .recurrence import RecurrenceOps
from .schema import backward_ops, empty_hidden, forward_ops, library


def walks_of(tensors: Sequence[Any], count: int) -> list[Any]:
    """The tensors of each of `count` walks, cut out of an operator's flat list."""
    size = len(tensors) // count
    return [tensors[walk * size : (walk + 1) * size] for walk in range(count)]


def geometries(front: str, taps: Sequence[int], mirrored: Sequence[bool]) -> list[Geometry]:
    """The geometry of each walk, from an operator's options."""
    return [Geometry.of(front, taps, one) for one in mirrored]


def _gradients(grad_hidden: Tensor, inputs: Sequence[Any], options: Sequence[Any], walk: int) -> tuple[Tensor, ...]:
    """Of one walk's gates, weight, h0, c0, in plain PyTorch."""
    gates, weight, h0, c0 = inputs
    geometry = geometries(*options)[walk]
    _, trace = reference.forward(gates, weight, h0, c0, geometry)
    return reference.backward(grad_hidden, weight, h0, c0, trace, geometry)


walks = {
    count: RecurrenceOps(
        library,
        forward_ops[count],
        backward_ops[count],
        count=count,
        size=4,
        gradients=_gradients,
        empty_result=lambda inputs: empty_hidden(inputs[0]),
    )
    for count in forward_ops
}
