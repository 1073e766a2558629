"""Weight gradient: a GEMM whose K axis is the pixels, split over programs (split-K) and added up in a fixed order.

    grad[m, tap, c] = sum over pixels p of a[p, m] * x[p * stride + shift(tap), c]

A program makes a tile of `BM` channels of a x `BN` columns (tap, channel of x) for its share of the pixels. The result
is small and the sum long, so few tiles exist: the pixels are split until every multiprocessor has work, each share
writes float32 partials, and `reduce_kernel` adds them in order. No atomics: the same call gives the same bits. Traffic:
a and x once per tile of the other, through L2, and twice the partials, at most 64 MiB. The tensor cores
bound it for 64 channels and more.

With 16 channels of x and more a tile belongs to one tap; with fewer it runs over (tap, channel).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.core.cuda_device import float32_precision
from .arguments import INTERPRETED, Image, Pixels, Shifts, Taps
from .elementwise import pixel_offset, rounded
from .launch import FEW_CHANNELS, cdiv, is_wide, readable, run_with_best_tile, split_k
from .pack import centre_is_live
from .tap_geometry import TapGeometry
from .tuning import Tile


class WeightGradientForm(NamedTuple):
    """What `weight_gradient_kernel` is compiled for."""

    flat: bool  # a tile runs over (tap, channel)
    grouped: bool  # blocks of the centre tap that colour groups hide are left out
    halves: bool  # the groups are those of half the channels of a, twice
    wide: bool  # 64-bit index arithmetic
    precision: str
    interpreted: bool


class ReduceForm(NamedTuple):
    """What `reduce_kernel` is compiled for."""

    centre: bool  # the last of the taps depends on groups
    interleaved: bool
    interpreted: bool


class TileColumns(NamedTuple):
    """The tile's N axis: tap (one for all but where flat) and channel of each column, its index, whether it exists."""

    tap: Any
    c: Any
    index: Any
    live: Any


@triton.jit
def columns_of_tile(row_length, C, FLAT: tl.constexpr, TILE: tl.constexpr):
    if FLAT:
        column = tl.program_id(1) * TILE.n + tl.arange(0, TILE.n)
        columns = TileColumns(column // C, column % C, column, column < row_length)
    else:
        per_tap = tl.cdiv(C, TILE.n)
        tap = tl.program_id(1) // per_tap
        c = tl.program_id(1) % per_tap * TILE.n + tl.arange(0, TILE.n)
        columns = TileColumns(tap, c, tap * C + c, c < C)
    return columns


@triton.jit
def block_is_hidden(m_tile, tap, M, C, taps: Taps, HALVES: tl.constexpr, TILE: tl.constexpr):
    """Whether no channel of the tile sees another in the centre tap: zero, and reduce_kernel does not even read it."""
    c_begin = tl.program_id(1) % tl.cdiv(C, TILE.n) * TILE.n
    last = tl.minimum(m_tile * TILE.m + TILE.m, M) - 1
    units = M
    if HALVES:
        units = M // 2
        last = tl.where((m_tile * TILE.m < units) & (last >= units), units - 1, last % units)
    return (tap == taps.count - 1) & (c_begin * taps.groups // C >= last * taps.groups // units + taps.see_own)


@triton.jit
def load_shifted(
    x: Image, columns: TileColumns, dh, dw, image, h, w, valid, pixels: Pixels, FLAT: tl.constexpr
):  # fmt: skip
    """x [pixels, columns] at pixels (h, w) shifted by each column's tap."""
    x_row = pixel_offset(x, image, h, w)
    if FLAT:
        hh = h[:, None] + dh[None, :]
        ww = w[:, None] + dw[None, :]
        inside = (hh >= 0) & (hh < pixels.x_height) & (ww >= 0) & (ww < pixels.x_width)
        tile = x.pointer + x_row[:, None] + (dh * x.h + dw * x.w + columns.c * x.c)[None, :]
        mask = inside & valid[:, None] & columns.live[None, :]
    else:
        inside = (h + dh >= 0) & (h + dh < pixels.x_height) & (w + dw >= 0) & (w + dw < pixels.x_width) & valid
        tile = x.pointer + (x_row + dh * x.h + dw * x.w)[:, None] + (columns.c * x.c)[None, :]
        mask = inside[:, None] & columns.live[None, :]
    return tl.load(tile, mask=mask, other=0.0)


@triton.jit(do_not_specialize=[*Pixels._fields, *Taps._fields, *Shifts._fields, "share"])
def weight_gradient_kernel(
    a: Image, x: Image, partial, M, C,
    rows, height, width, x_height, x_width,  # Pixels: those of a
    kernel_h, kernel_w, count, groups, see_own,  # Taps
    first_h, first_w, step_h, step_w, stride_h, stride_w,  # Shifts
    share,  # pixels for one program, whole steps
    FORM: tl.constexpr, TILE: tl.constexpr,  # WeightGradientForm, tuning.Tile
):  # fmt: skip
    """``count`` of the `Taps` includes the centre here."""
    BM: tl.constexpr = TILE.m
    BN: tl.constexpr = TILE.n
    BK: tl.constexpr = TILE.k
    pixels = Pixels(rows, height, width, x_height, x_width)
    taps = Taps(kernel_h, kernel_w, count, groups, see_own)
    m_tile = tl.program_id(0)
    row_length = count * C
    steps = tl.cdiv(share, BK)
    columns = columns_of_tile(row_length, C, FORM.flat, TILE)
    if FORM.grouped:
        steps = tl.where(block_is_hidden(m_tile, columns.tap, M, C, taps, FORM.halves, TILE), 0, steps)
    dh = first_h + columns.tap // kernel_w * step_h
    dw = first_w + columns.tap % kernel_w * step_w
    m = m_tile * BM + tl.arange(0, BM)
    p = tl.program_id(2) * share + tl.arange(0, BK)
    end = tl.minimum(tl.program_id(2) * share + share, rows)
    if FORM.wide:
        p = tl.program_id(2).to(tl.int64) * share + tl.arange(0, BK)
        end = tl.minimum(tl.program_id(2).to(tl.int64) * share + share, rows)
        dh = dh.to(tl.int64)
        dw = dw.to(tl.int64)
        m = m.to(tl.int64)
        columns = TileColumns(columns.tap, columns.c.to(tl.int64), columns.index, columns.live)
    image = p // (height * width)
    i = p // width % height
    j = p % width
    # A step of BK pixels in mixed radix, so that no division is left in the loop.
    step_image = BK // (height * width)
    step_i = BK // width % height
    step_j = BK % width

    acc = tl.zeros((BM, BN), tl.float32)
    for _ in range(steps):
        valid = p < end
        a_row = pixel_offset(a, image, i, j)
        a_tile = a.pointer + (m * a.c)[:, None] + a_row[None, :]
        left = tl.load(a_tile, mask=(m < M)[:, None] & valid[None, :], other=0.0)
        right = load_shifted(x, columns, dh, dw, image, i * stride_h, j * stride_w, valid, pixels, FORM.flat)
        if FORM.interpreted:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        acc = tl.dot(left, right, acc, input_precision=FORM.precision)
        p += BK
        j += step_j
        over = j >= width
        j = tl.where(over, j - width, j)
        i += step_i + tl.where(over, 1, 0)
        over = i >= height
        i = tl.where(over, i - height, i)
        image += step_image + tl.where(over, 1, 0)
    target = partial + (tl.program_id(2).to(tl.int64) * M + m)[:, None] * row_length + columns.index[None, :]
    tl.store(target, acc, mask=(m < M)[:, None] & columns.live[None, :])


@triton.jit(do_not_specialize=["parts", "M", "C", "m_units", *Taps._fields])
def reduce_kernel(
    partial, grad: Image, parts, M, C, m_units,
    kernel_h, kernel_w, count, groups, see_own,  # Taps
    FORM: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the partials in order and writes the gradient in the weight's layout; a dead tap gets exactly zero."""
    line = kernel_h * kernel_w * C
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = e // line
    tap = e % line // C
    c = e % line % C
    exists = m < M
    live = exists & (tap < count)
    if FORM.centre:
        live = live & ((tap < count - 1) | centre_is_live(m, c, m_units, C, groups, see_own, FORM.interleaved))
    total = tl.zeros((BLOCK,), tl.float32)
    columns = count * C
    part = tl.arange(0, PARTS)
    for begin in range(0, parts, PARTS):  # several at a time, since each is a wait for memory
        at = partial + ((begin + part)[:, None] * M + m[None, :]) * columns + (tap * C + c)[None, :]
        total += tl.sum(tl.load(at, mask=live[None, :] & (begin + part < parts)[:, None], other=0.0), 0)
    target = grad.pointer + m * grad.n + c * grad.c + tap // kernel_w * grad.h + tap % kernel_w * grad.w
    tl.store(target, rounded(total, grad.pointer.dtype.element_ty, FORM.interpreted), mask=exists)


def weight_gradient(a: Tensor, x: Tensor, grad: Tensor, geometry: TapGeometry) -> None:
    """``grad[m, c, r, s] = sum over pixels p of a of a[p, m] * x[p * stride + first + (r, s) * step, c]``, in place.

    a [N, M, P, Q], x [N, C, H, W], grad [M, C, kh, kw] of any strides. Masked taps get zero.
    """
    a, x = readable(a), readable(x)
    pixels = Pixels(a.shape[0] * a.shape[2] * a.shape[3], *a.shape[2:], *x.shape[2:])
    outputs, channels = a.shape[1], x.shape[1]
    taps = geometry.counted(geometry.taps + bool(geometry.centre))
    columns = taps.count * channels
    flat = channels < FEW_CHANNELS
    form = WeightGradientForm(
        flat,
        grouped=bool(geometry.centre) and not geometry.interleaved and not flat,
        halves=geometry.halves,
        wide=is_wide(a, x),
        precision=float32_precision(),
        interpreted=INTERPRETED,
    )

    def run(tile: Tile) -> None:
        tiles_m = cdiv(outputs, tile.m)
        tiles_n = cdiv(columns, tile.n) if flat else taps.count * cdiv(channels, tile.n)
        share, parts = split_k(a, pixels.rows, tiles_m * tiles_n, tile.k, 4 * outputs * columns)
        partial = torch.empty((parts, outputs, columns), dtype=torch.float32, device=a.device)
        if tiles_m * tiles_n and parts:
            weight_gradient_kernel[(tiles_m, tiles_n, parts)](
                a=Image.of(a), x=Image.of(x), partial=partial, M=outputs, C=channels,
                **pixels._asdict(), **taps._asdict(), **geometry.shifts._asdict(), share=share,
                FORM=form, TILE=tile, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        reduce_kernel[(cdiv(grad.numel(), 256),)](
            partial=partial, grad=Image.of(grad), parts=parts,
            M=outputs, C=channels, m_units=geometry.units(outputs, channels)[0], **taps._asdict(),
            FORM=ReduceForm(bool(geometry.centre), geometry.interleaved, INTERPRETED), PARTS=8, BLOCK=256,
        )  # fmt: skip

    key = ("weight_gradient", x.dtype, form.precision, pixels.rows, channels, outputs,
           replace(geometry, first=(0, 0)), form.wide)  # fmt: skip
    run_with_best_tile(
        run, a, key,
        rows=outputs, columns=columns if flat else channels, depth=pixels.rows, precision=form.precision, split_k=True,
    )  # fmt: skip
