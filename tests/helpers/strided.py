"""Tensors of unusual strides for the tests of every operation: single dimensions, overlaps, huge steps.

PyTorch calls a tensor contiguous or channels_last whatever the strides of its dimensions of size 1 are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

HUGE = 10**8  # stepped by once, the process ends or reads what is not the tensor's
OPEN = (0, 1, 3, HUGE)  # strides of a dimension of size 1
ORDERS = {1: [(0,)], 2: [(1, 0)], 3: [(2, 1, 0)], 4: [(3, 2, 1, 0), (1, 3, 2, 0)]}  # innermost first

Strides = tuple[int, ...]


def dense(shape: Sequence[int]) -> list[Strides]:
    """All strides of a contiguous or channels_last tensor, with each of OPEN in single dimensions (some, of three)."""
    single = [dim for dim, size in enumerate(shape) if size == 1]
    open_strides = list(itertools.product(OPEN, repeat=len(single)))
    if len(single) > 2:
        open_strides = open_strides[:: 4 ** (len(single) - 2) - 1]
    found = []
    for order, values in itertools.product(ORDERS[len(shape)], open_strides):
        strides, step = [0] * len(shape), 1
        for dim in order:
            strides[dim], step = step, step * shape[dim]
        for dim, value in zip(single, values, strict=True):
            strides[dim] = value
        found.append(tuple(strides))
    return list(dict.fromkeys(found))


def in_turn(shapes: Sequence[Sequence[int]]) -> Iterator[list[Strides]]:
    """Strides for tensors of these shapes, so many times that every tensor has had all of ``dense``."""
    choices = [dense(shape) for shape in shapes]
    for turn in range(max(map(len, choices))):
        yield [found[(turn + 3 * k) % len(found)] for k, found in enumerate(choices)]


def overlapping(shape: Sequence[int]) -> list[Strides]:
    """Strides by which elements share memory: expanded dimensions, and windows that overlap."""
    last = len(shape) - 1
    patterns = [
        *(tuple(int(k == dim) for k in range(len(shape))) for dim in range(len(shape))),  # expanded but for one
        (0,) * len(shape),
        (1,) * len(shape),
        tuple(2 * (last - k) + 1 for k in range(len(shape))),  # windows along the last dimension
    ]
    if len(shape) == 4:
        # Channels and columns both next to each other; rows that overlap; channels innermost and pixels that overlap.
        patterns += [(7, 1, 5, 1), (0, 4, 1, 1), (5, 1, 0, 2), (HUGE if shape[0] == 1 else 9, 3, 1, 0), (11, 1, 2, 0)]
    return patterns


def strided(values: Tensor, strides: Strides, offset: int = 0) -> Tensor:
    """``values`` in fresh memory of these strides; where elements share memory, the last one written.

    What stands before, between and behind them is NaN, so that a kernel which reads it shows.
    """
    length = offset + 1 + sum((size - 1) * step for size, step in zip(values.shape, strides, strict=True))
    memory = values.new_full((max(length, 1) + 64,), torch.nan)
    t = memory.as_strided(values.shape, strides, offset)
    places = torch.arange(len(memory), device=values.device).as_strided(values.shape, strides, offset).reshape(-1)
    memory[places] = values.reshape(-1)
    return t


def plain(t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same values, contiguous, with the strides that a contiguous tensor has everywhere else."""
    return torch.empty(t.shape, dtype=dtype or t.dtype, device=t.device).copy_(t)


def whole_numbers(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """-2 .. 2: sums of products of them are exact, and so is whether a ReLU lets them through."""
    return torch.randint(-2, 3, tuple(shape), generator=torch.Generator().manual_seed(seed)).to(dtype)
