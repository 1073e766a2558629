"""Batch norm around the convolution: joining the statistics of its tiles, and the one pass that makes y of z.

The convolution leaves [tiles, 3, C] (count, mean, squared deviations, from its registers), a few hundred kilobytes that
`statistics_kernel` joins by the parallel formula (Chan, Golub, LeVeque 1983), so nothing cancels. `normalise_kernel`
reads z and writes y once, line by line in memory order, which memory bandwidth bounds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .elementwise import activate, rounded


class Norm(NamedTuple):
    """Statistics and affine parameters [C]; weight and bias None where there are none."""

    mean: Any
    rstd: Any
    weight: Any
    bias: Any


class NormaliseForm(NamedTuple):
    """What `normalise_kernel` is compiled for."""

    channels_innermost: bool  # a line is a pixel, else a plane
    activation: str
    interpreted: bool


class NormaliseTile(NamedTuple):
    """Lines and columns of a tile, and how many tiles a program walks."""

    lines: int
    columns: int
    tiles: int


@triton.jit(do_not_specialize=["tiles", "C"])
def statistics_kernel(stats, result, tiles, C, TILES: tl.constexpr, CHANNELS: tl.constexpr):
    """result [2, C]: the mean and the sum of squared deviations of each channel over all tiles."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    tile = tl.arange(0, TILES)
    count = tl.zeros((CHANNELS,), tl.float32)
    total = tl.zeros((CHANNELS,), tl.float32)
    for begin in range(0, tiles, TILES):
        mask = (begin + tile < tiles)[:, None] & (c < C)[None, :]
        at = stats + ((begin + tile).to(tl.int64) * 3 * C)[:, None] + c[None, :]
        n = tl.load(at, mask=mask, other=0.0)
        count += tl.sum(n, 0)
        total += tl.sum(n * tl.load(at + C, mask=mask, other=0.0), 0)
    mean = total / tl.maximum(count, 1.0)
    deviations = tl.zeros((CHANNELS,), tl.float32)
    for begin in range(0, tiles, TILES):
        mask = (begin + tile < tiles)[:, None] & (c < C)[None, :]
        at = stats + ((begin + tile).to(tl.int64) * 3 * C)[:, None] + c[None, :]
        away = tl.load(at + C, mask=mask, other=0.0) - mean[None, :]
        between = tl.load(at, mask=mask, other=0.0) * away * away
        deviations += tl.sum(tl.load(at + 2 * C, mask=mask, other=0.0) + between, 0)
    tl.store(result + c, mean, mask=c < C)
    tl.store(result + C + c, deviations, mask=c < C)


@triton.jit
def load_norm(norm: Norm, c, mask):
    """Mean, rstd, weight and bias of channels c; 0 for a weight or bias that is None, which is not read."""
    mean = tl.load(norm.mean + c, mask=mask, other=0.0)
    rstd = tl.load(norm.rstd + c, mask=mask, other=0.0)
    weight = 0.0
    bias = 0.0
    if norm.weight is not None:
        weight = tl.load(norm.weight + c, mask=mask, other=0.0)
    if norm.bias is not None:
        bias = tl.load(norm.bias + c, mask=mask, other=0.0)
    return Norm(mean, rstd, weight, bias)


@triton.jit(do_not_specialize=["lines", "C", "slope"])
def normalise_kernel(
    z, y, norm: Norm, lines, length, C, slope,
    FORM: tl.constexpr, TILE: tl.constexpr,  # NormaliseForm, NormaliseTile
):  # fmt: skip
    """y = act(batch norm of z); both dense, ``lines`` of ``length``, of which a program takes several tiles."""
    ACTIVATION: tl.constexpr = FORM.activation
    across = tl.cdiv(length, TILE.columns)
    column = tl.program_id(0) % across * TILE.columns + tl.arange(0, TILE.columns)
    first = (tl.program_id(0) // across).to(tl.int64) * (TILE.lines * TILE.tiles)
    line = first + tl.arange(0, TILE.lines)
    there = (column < length)[None, :]
    if FORM.channels_innermost:
        values = load_norm(norm, column[None, :], there)
    for _ in range(tl.minimum(tl.cdiv(lines - first, TILE.lines), TILE.tiles)):
        known = (line < lines)[:, None]
        if not FORM.channels_innermost:
            values = load_norm(norm, (line % C)[:, None], known)
        at = line[:, None] * length + column[None, :]
        u = tl.load(z + at, mask=known & there, other=0.0).to(tl.float32)
        u = (u - values.mean) * values.rstd
        if norm.weight is not None:
            u = u * values.weight
        if norm.bias is not None:
            u = u + values.bias
        out = rounded(activate(u, slope, ACTIVATION), y.dtype.element_ty, FORM.interpreted)
        tl.store(y + at, out, mask=known & there)
        line += TILE.lines
