"""Batch norm around the convolution: joining the statistics of its tiles, and the one pass that makes y of z.

The convolution leaves [tiles, 3, C] (count, mean, squared deviations, from its registers), a few hundred kilobytes that
`statistics_kernel` joins by the parallel formula (Chan, Golub, LeVeque 1983), so nothing cancels. `normalise_kernel`
reads z and writes y once, element by element in memory order, which memory bandwidth bounds.
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
        at = stats + ((begin + tile) * 3 * C)[:, None] + c[None, :]
        n = tl.load(at, mask=mask, other=0.0)
        count += tl.sum(n, 0)
        total += tl.sum(n * tl.load(at + C, mask=mask, other=0.0), 0)
    mean = total / tl.maximum(count, 1.0)
    deviations = tl.zeros((CHANNELS,), tl.float32)
    for begin in range(0, tiles, TILES):
        mask = (begin + tile < tiles)[:, None] & (c < C)[None, :]
        at = stats + ((begin + tile) * 3 * C)[:, None] + c[None, :]
        away = tl.load(at + C, mask=mask, other=0.0) - mean[None, :]
        between = tl.load(at, mask=mask, other=0.0) * away * away
        deviations += tl.sum(tl.load(at + 2 * C, mask=mask, other=0.0) + between, 0)
    tl.store(result + c, mean, mask=c < C)
    tl.store(result + C + c, deviations, mask=c < C)


@triton.jit(do_not_specialize=["total", "slope"])
def normalise_kernel(
    z, y, mean, rstd, weight, bias, total, C, inner, slope,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    INTERPRETED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = act(batch norm of z); both dense, a channel changing every ``inner`` elements."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = e < total
    c = (e // inner % C).to(tl.int32)
    u = tl.load(z + e, mask=mask, other=0.0).to(tl.float32)
    u = (u - tl.load(mean + c)) * tl.load(rstd + c)
    if HAS_WEIGHT:
        u = u * tl.load(weight + c)
    if HAS_BIAS:
        u = u + tl.load(bias + c)
    tl.store(y + e, rounded(activate(u, slope, ACTIVATION), y.dtype.element_ty, INTERPRETED), mask=mask)
