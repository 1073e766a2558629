"""Batch norm around the convolution: joining the statistics of its tiles, and the one pass that makes y of z.

The convolution leaves [tiles, 3, C] (count, mean, squared deviations, from its registers), a few hundred kilobytes that
`statistics_kernel` joins by the parallel formula (Chan, Golub, LeVeque 1983), so nothing cancels. `normalise_kernel`
reads z and writes y once, line by line in memory order, which memory bandwidth bounds.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .forward import activate, rounded


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


@triton.jit(do_not_specialize=["lines", "C", "slope"])
def normalise_kernel(
    z, y, mean, rstd, weight, bias, lines, length, C, slope,
    CHANNELS_INNERMOST: tl.constexpr,  # a line is a pixel, else a plane
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr,
    LINES: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """y = act(batch norm of z); both dense, ``lines`` of ``length``, of which a program takes LINES * TILES."""
    across = tl.cdiv(length, COLUMNS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    first = (tl.program_id(0) // across).to(tl.int64) * (LINES * TILES)
    line = first + tl.arange(0, LINES)
    there = (column < length)[None, :]
    if CHANNELS_INNERMOST:
        c = column[None, :]
        scale = tl.load(rstd + c, mask=there, other=0.0)
        centre = tl.load(mean + c, mask=there, other=0.0)
        if HAS_WEIGHT:
            gamma = tl.load(weight + c, mask=there, other=0.0)
        if HAS_BIAS:
            beta = tl.load(bias + c, mask=there, other=0.0)
    for _ in range(tl.minimum(tl.cdiv(lines - first, LINES), TILES)):
        known = (line < lines)[:, None]
        if not CHANNELS_INNERMOST:
            c = (line % C)[:, None]
            scale = tl.load(rstd + c, mask=known, other=0.0)
            centre = tl.load(mean + c, mask=known, other=0.0)
            if HAS_WEIGHT:
                gamma = tl.load(weight + c, mask=known, other=0.0)
            if HAS_BIAS:
                beta = tl.load(bias + c, mask=known, other=0.0)
        at = line[:, None] * length + column[None, :]
        u = tl.load(z + at, mask=known & there, other=0.0).to(tl.float32)
        u = (u - centre) * scale
        if HAS_WEIGHT:
            u = u * gamma
        if HAS_BIAS:
            u = u + beta
        out = rounded(activate(u, slope, ACTIVATION), y.dtype.element_ty, INTERPRETED)
        tl.store(y + at, out, mask=known & there)
        line += LINES
