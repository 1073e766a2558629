"""The wavefront LSTM in plain PyTorch: works in every dtype and on every device, and is the oracle.

A step at a time, without an in-place operation, so that it can be differentiated to any order. "Sweep order" lists
the cells step by step: the cells of a step are then one slice, and no skewed image is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Geometry
from .schema import accumulator


@dataclass(frozen=True)
class _Step:
    """Where the cells of a step stand in sweep order, and where on the step before it they read.

    Cell j reads cell ``j + shifts[tap]`` of the ``previous`` ones, and carries on the c of cell ``j + cell_shift``;
    where there is no such cell stands the initial state, outside the image.
    """

    start: int
    count: int
    previous: int
    shifts: list[int]
    cell_shift: int


@lru_cache(maxsize=64)
def _path(geometry: Geometry, height: int, width: int) -> list[_Step]:
    """The steps of an image. No tensors: a cache must not keep those of a trace."""
    steps: list[_Step] = []
    start = previous = first_before = 0
    for step in range(geometry.steps(height, width)):
        cells = geometry.cells(step, height, width)
        # Along a diagonal cells are counted from its first row, which moves down once the right edge is reached.
        first = cells[0][0] if geometry.front == "diagonal" else 0
        moved = first - first_before
        steps.append(_Step(start, len(cells), previous, [moved + tap for tap in geometry.taps], moved))
        start, previous, first_before = start + len(cells), len(cells), first
    return steps


def _path_of(image: Tensor, geometry: Geometry) -> tuple[Tensor, list[_Step]]:
    """The pixels of an image [N, K, H, W] in sweep order, [H * W], and the steps."""
    height, width = int(image.shape[2]), int(image.shape[3])
    pixel = torch.arange(height * width, device=image.device)
    if geometry.front == "diagonal":
        y, x = pixel // max(width, 1), pixel % max(width, 1)
        step = y + (width - 1 - x if geometry.mirrored else x)
        pixel = (step * height + y).argsort()
    return pixel, _path(geometry, height, width)


def _plain_arithmetic(function: Any) -> Any:
    """Keeps autocast out: a recurrence computes in the dtype that it was given."""

    @wraps(function)
    def call(first: Tensor, *others: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *others)

    return call


def _in_sweep_order(image: Tensor, order: Tensor) -> Tensor:
    """[N, K, H, W] -> [H * W, N, K] in sweep order and the accumulator's dtype."""
    return image.flatten(2).permute(2, 0, 1)[order].to(accumulator(image.dtype))


def _to_image(swept: Tensor, order: Tensor, size: Sequence[int]) -> Tensor:
    """[H * W, N, K] in sweep order -> [N, K, H, W]."""
    return swept[order.argsort()].permute(1, 2, 0).unflatten(2, list(size))


def _state(initial: Tensor | None, like: Tensor, hidden: int) -> Tensor:
    """The initial state of one cell, [1, N, h]."""
    batch = like.shape[1]
    if initial is None:
        return like.new_zeros(1, batch, hidden)
    return initial.to(like.dtype).expand(1, batch, hidden)


def _matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[taps, 4h, h] -> [4h, taps * h], so that a step is one matrix product."""
    return weight.to(dtype).transpose(0, 1).flatten(1)


def _shifted(previous: Tensor, initial: Tensor, count: int, shifts: Sequence[int]) -> list[Tensor]:
    """For each shift cells ``shift .. shift + count - 1`` of the previous ones, the initial state beyond them."""
    before, after = max(0, -min(shifts)), max(0, count + max(shifts) - len(previous))
    edge = initial.shape[1:]
    padded = torch.cat([initial.expand(before, *edge), previous, initial.expand(after, *edge)])
    return [padded[before + shift : before + shift + count] for shift in shifts]


def _read(previous: Tensor, initial: Tensor, step: _Step) -> Tensor:
    """The h that the taps of each cell of a step see: [cells, N, taps * h]."""
    return torch.cat(_shifted(previous, initial, step.count, step.shifts), 2)


def _carried(previous: Tensor, initial: Tensor, step: _Step) -> Tensor:
    """The c that each cell of a step carries on: [cells, N, h]."""
    return _shifted(previous, initial, step.count, [step.cell_shift])[0]


def _given_back(grads: Sequence[Tensor], shifts: Sequence[int], previous: int) -> tuple[Tensor, Tensor]:
    """The gradients of the previous cells and, summed over cells, of the initial state, from those of _shifted."""
    total, outside = grads[0].new_zeros(previous, *grads[0].shape[1:]), grads[0].new_zeros(grads[0].shape[1:])
    for grad, shift in zip(grads, shifts, strict=True):
        first = min(max(0, -shift), len(grad))  # cells first .. last - 1 read previous ones
        last = max(first, min(len(grad), previous - shift))
        inside = grad[first:last]
        at = first + shift if len(inside) else 0
        total = total + F.pad(inside, (0, 0, 0, 0, at, previous - at - len(inside)))
        outside = outside + grad[:first].sum(0) + grad[last:].sum(0)
    return total, outside


@_plain_arithmetic
def forward(
    gates: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """gates [N, 4h, H, W], weight [taps, 4h, h] -> hidden [N, h, H, W] and the trace for :func:`backward`.

    The trace, [H * W, N, 5h] in sweep order, is i, f, g, o after their sigmoid or tanh, and c.
    """
    batch, channels, height, width = gates.shape
    units = channels // 4
    order, steps = _path_of(gates, geometry)
    x = _in_sweep_order(gates, order)
    matrix = _matrix(weight, x.dtype)
    initial_h, initial_c = _state(h0, x, units), _state(c0, x, units)
    h = c = x.new_zeros(0, batch, units)
    hidden, trace = [x.new_zeros(0, batch, units)], [x.new_zeros(0, batch, 5 * units)]
    for step in steps:
        own = x[step.start : step.start + step.count]  # [cells, N, 4h]
        i, f, g, o = (own + _read(h, initial_h, step) @ matrix.t()).chunk(4, dim=2)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * _carried(c, initial_c, step) + i * g
        h = o * c.tanh()
        hidden.append(h)
        trace.append(torch.cat([i, f, g, o, c], dim=2))
    return _to_image(torch.cat(hidden), order, (height, width)).to(gates.dtype), torch.cat(trace)


@_plain_arithmetic
def backward(
    grad_hidden: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, trace: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of gates, weight, h0 and c0 (there even where the state is None), in the accumulator's dtype."""
    batch, units, height, width = grad_hidden.shape
    order, steps = _path_of(grad_hidden, geometry)
    grad = _in_sweep_order(grad_hidden, order)
    matrix = _matrix(weight, trace.dtype)
    initial_h, initial_c = _state(h0, trace, units), _state(c0, trace, units)
    nothing = trace.new_zeros(0, batch, units)
    grad_matrix, grad_h0, grad_c0 = torch.zeros_like(matrix), trace.new_zeros(units), trace.new_zeros(units)
    grad_pre = [trace.new_zeros(0, batch, 4 * units)]
    dh_later = dc_later = trace.new_zeros(())  # what the step after this one adds
    for index, step in reversed(list(enumerate(steps))):
        end = step.start + step.count
        i, f, g, o, c = trace[step.start : end].chunk(5, dim=2)
        if index == 0:
            previous_h = previous_c = nothing
        else:
            *_, previous_o, previous_c = trace[steps[index - 1].start : step.start].chunk(5, dim=2)
            previous_h = previous_o * previous_c.tanh()
        tanh_c = c.tanh()
        dh = grad[step.start : end] + dh_later
        dc = dh * o * (1 - tanh_c * tanh_c) + dc_later
        carried = _carried(previous_c, initial_c, step)
        di, df, dg, do = (
            dc * g * i * (1 - i),
            dc * carried * f * (1 - f),
            dc * i * (1 - g * g),
            dh * tanh_c * o * (1 - o),
        )
        pre = torch.cat([di, df, dg, do], dim=2)  # [cells, N, 4h]
        grad_pre.append(pre)
        grad_matrix = grad_matrix + pre.flatten(0, 1).t() @ _read(previous_h, initial_h, step).flatten(0, 1)
        to_taps = (pre @ matrix).split(units, 2)  # [cells, N, h] for each
        dh_later, to_h0 = _given_back(to_taps, step.shifts, step.previous)
        dc_later, to_c0 = _given_back([dc * f], [step.cell_shift], step.previous)
        grad_h0, grad_c0 = grad_h0 + to_h0.sum(0), grad_c0 + to_c0.sum(0)
    grad_gates = _to_image(torch.cat(grad_pre[:1] + grad_pre[:0:-1]), order, (height, width))
    return grad_gates, grad_matrix.unflatten(1, (-1, units)).transpose(0, 1), grad_h0, grad_c0
