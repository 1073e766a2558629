"""The incoming gradient through activation and batch norm, before the GEMMs of a backward pass; its sums over pixels.

One pass over [pixels, channels] tiles: g = grad_y * act'(at), `at` being y, or z under batch norm, from which zhat and
the activation's argument are worked out again; then the sums of g and g * zhat over the pixels, or what the products
read, ``factor * (g - mean_g - zhat * mean_g_zhat)``, written with channels innermost. Memory bounds it: 2 images read,
1 written. Under a gate g has twice the channels of grad_y.

The loaders of the two products could do it, never writing g. Let G be the bytes of g. This pass moves 3 G, and
each product then reads g from memory once, 5 G; with the work in their loaders both read grad_y and z, 4 G. So a
loader saves G of memory traffic. It pays for that with a second operand through L2 every time a product reads g: once
per tap that meets a pixel and per tile across, R G in all. L2 gives about twice the bandwidth of memory, so the loader
wins where R < 2, a 1x1 kernel and one tile across. R, both products counted, is (4 + 4) x tiles across for a 4x4
transposed convolution of stride 2, 32 x tiles across for a strided one, and 10 x tiles across for a 3x3 mask B. On top
of it g would be worked out R times, 10 ordinary instructions each on an operand that otherwise goes from memory to the
tensor cores without touching a register. DCGAN's 512 -> 256 on 8x8, batch 128, bfloat16: G is 17 MB, 5 us at 3.3 TB/s
saved, for 400 MB more through L2 (R = 24).

Sums are taken per program, then added up in a fixed order; no atomics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.core.strides import channels_adjoin
from .arguments import INTERPRETED, Image
from .elementwise import activate, pixel_offset, rounded, slope_at, store_halves
from .launch import cdiv, is_readable, is_wide, on_device


class GradientForm(NamedTuple):
    """What the kernels of this file are compiled for; the gate's one reads neither activation, norm nor write."""

    activation: str
    norm: str  # "" | "sums" | "gradient"
    write: bool
    sums: int  # how many a channel has in partial
    grad_pixels_innermost: bool
    at_pixels_innermost: bool
    wide: bool
    interpreted: bool


class GradientTile(NamedTuple):
    """Pixels and channels of a tile, and how many tiles a program walks."""

    rows: int
    channels: int
    tiles: int


_TILE = GradientTile(rows=64, channels=32, tiles=8)


@triton.jit
def load_tile(image: Image, row, c, mask, PIXELS_INNERMOST: tl.constexpr):
    """[pixels, channels] in float32 from the pixels' offsets, by threads side by side along what is contiguous."""
    channel = c * image.c
    if PIXELS_INNERMOST:
        tile = tl.trans(tl.load(image.pointer + channel[:, None] + row[None, :], mask=tl.trans(mask), other=0.0))
    else:
        tile = tl.load(image.pointer + row[:, None] + channel[None, :], mask=mask, other=0.0)
    return tile.to(tl.float32)


@triton.jit
def first_tile(C, WIDE: tl.constexpr, TILE: tl.constexpr):
    """The first pixels of this program, and its channels."""
    first = tl.program_id(0) * (TILE.rows * TILE.tiles)
    c = tl.program_id(1) * TILE.channels + tl.arange(0, TILE.channels)
    if WIDE:
        first = tl.program_id(0).to(tl.int64) * (TILE.rows * TILE.tiles)
        c = c.to(tl.int64)
    return first, c


@triton.jit(do_not_specialize=["rows", "height", "width"])
def gradient_kernel(
    grad: Image, at: Image, g: Image,
    partial,  # [SUMS, programs, C]
    norm,  # mean, rstd, weight, bias, mean_g, mean_g_zhat, [C] each
    rows, height, width, C, negative_slope,
    FORM: tl.constexpr, TILE: tl.constexpr,  # GradientForm, GradientTile
):  # fmt: skip
    ACTIVATION: tl.constexpr = FORM.activation
    CHANNELS: tl.constexpr = TILE.channels
    first, c = first_tile(C, FORM.wide, TILE)
    there = c < C
    row = first + tl.arange(0, TILE.rows)
    if FORM.norm != "":
        mean = tl.load(norm + c, mask=there, other=0.0)[None, :]
        rstd = tl.load(norm + C + c, mask=there, other=0.0)[None, :]
        weight = tl.load(norm + 2 * C + c, mask=there, other=0.0)[None, :]
        bias = tl.load(norm + 3 * C + c, mask=there, other=0.0)[None, :]
    if FORM.norm == "gradient":
        mean_g = tl.load(norm + 4 * C + c, mask=there, other=0.0)[None, :]
        mean_g_zhat = tl.load(norm + 5 * C + c, mask=there, other=0.0)[None, :]
    total = tl.zeros((CHANNELS,), tl.float32)
    total_zhat = tl.zeros((CHANNELS,), tl.float32)
    for _ in range(tl.minimum(tl.cdiv(rows - first, TILE.rows), TILE.tiles)):
        n = row // (height * width)
        h = row // width % height
        w = row % width
        mask = (row < rows)[:, None] & there[None, :]
        v = load_tile(grad, pixel_offset(grad, n, h, w), c, mask, FORM.grad_pixels_innermost)
        if FORM.norm != "" or ACTIVATION != "none":
            y = load_tile(at, pixel_offset(at, n, h, w), c, mask, FORM.at_pixels_innermost)
        if FORM.norm != "":
            zhat = tl.where(mask, (y - mean) * rstd, 0.0)
            y = activate(zhat * weight + bias, negative_slope, ACTIVATION)
        if ACTIVATION != "none":
            v = v * slope_at(y, negative_slope, ACTIVATION)
        if FORM.sums > 0:
            total += tl.sum(v, 0)
        if FORM.sums > 1:
            total_zhat += tl.sum(v * zhat, 0)
        if FORM.norm == "gradient":
            v = rstd * weight * (v - mean_g - zhat * mean_g_zhat)
        if FORM.write:
            out = rounded(v, g.pointer.dtype.element_ty, FORM.interpreted)
            tl.store(g.pointer + pixel_offset(g, n, h, w)[:, None] + (c * g.c)[None, :], out, mask=mask)
        row += TILE.rows
    if FORM.sums > 0:
        tl.store(partial + tl.program_id(0) * C + c, total, mask=there)
    if FORM.sums > 1:
        tl.store(partial + (tl.num_programs(0) + tl.program_id(0)) * C + c, total_zhat, mask=there)


@triton.jit(do_not_specialize=["rows", "height", "width"])
def gate_gradient_kernel(
    grad: Image, features: Image, g: Image, partial, rows, height, width, units,
    FORM: tl.constexpr, TILE: tl.constexpr,  # GradientForm, GradientTile
):  # fmt: skip
    """g [pixels, 2 units] of y = tanh(a) * sigmoid(b), a and b the halves of the features; partial [pid, 2 units]."""
    CHANNELS: tl.constexpr = TILE.channels
    first, u = first_tile(units, FORM.wide, TILE)
    there = u < units
    row = first + tl.arange(0, TILE.rows)
    total_a = tl.zeros((CHANNELS,), tl.float32)
    total_b = tl.zeros((CHANNELS,), tl.float32)
    for _ in range(tl.minimum(tl.cdiv(rows - first, TILE.rows), TILE.tiles)):
        n = row // (height * width)
        h = row // width % height
        w = row % width
        mask = (row < rows)[:, None] & there[None, :]
        f_row = pixel_offset(features, n, h, w)
        v = load_tile(grad, pixel_offset(grad, n, h, w), u, mask, FORM.grad_pixels_innermost)
        a = load_tile(features, f_row, u, mask, FORM.at_pixels_innermost)
        b = load_tile(features, f_row, units + u, mask, FORM.at_pixels_innermost)
        a = activate(a, 0.0, "tanh")
        b = activate(b, 0.0, "sigmoid")
        g_a = v * b * slope_at(a, 0.0, "tanh")
        g_b = v * a * slope_at(b, 0.0, "sigmoid")
        if FORM.sums > 0:
            total_a += tl.sum(g_a, 0)
            total_b += tl.sum(g_b, 0)
        store_halves(g, pixel_offset(g, n, h, w), u, units, g_a, g_b, mask, FORM.interpreted)
        row += TILE.rows
    if FORM.sums > 0:
        mine = partial + tl.program_id(0) * 2 * units + u
        tl.store(mine, total_a, mask=there)
        tl.store(mine + units, total_b, mask=there)


@triton.jit(do_not_specialize=["parts", "C"])
def add_up_kernel(
    partial, result, parts, C, INTERPRETED: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """result[i, c] = the sum of partial[i, :, c]."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.arange(0, PARTS)
    mine = partial + tl.program_id(1) * parts * C
    total = tl.zeros((CHANNELS,), tl.float32)
    for begin in range(0, parts, PARTS):
        mask = (begin + part < parts)[:, None] & (c < C)[None, :]
        total += tl.sum(tl.load(mine + ((begin + part) * C)[:, None] + c[None, :], mask=mask, other=0.0), 0)
    tl.store(result + tl.program_id(1) * C + c, rounded(total, result.dtype.element_ty, INTERPRETED), mask=c < C)


def gradient(
    grad_output: Tensor,
    at: Tensor | None,
    activation: str,
    slope: float = 0.0,
    *,
    sums: Tensor | None = None,
    norm: Tensor | None = None,
    write: bool = True,
) -> Tensor:
    """The gradient that the products read: ``grad_output`` through activation and batch norm.

    ``at`` is the activation's result or, with ``norm`` [4 or 6, C], z. ``sums`` is filled with the sum of g over the
    pixels [C], and with ``norm`` that of g * zhat too [2, C]. Returns grad_output itself where nothing changes it.
    """
    n, channels, height, width = grad_output.shape
    write = write and (norm is not None or activation != "none" or not is_readable(grad_output))
    if not write and sums is None:
        return grad_output
    at = grad_output if at is None else at
    g = torch.empty_like(grad_output, memory_format=torch.channels_last) if write else grad_output
    rows = n * height * width
    parts = cdiv(rows, _TILE.rows * _TILE.tiles)
    count = 0 if sums is None else 1 if norm is None else 2
    partial = torch.empty((count, parts, channels), dtype=torch.float32, device=g.device) if count else None
    form = GradientForm(
        activation,
        norm="" if norm is None else "gradient" if write else "sums",
        write=write,
        sums=count,
        grad_pixels_innermost=not channels_adjoin(grad_output),
        at_pixels_innermost=not channels_adjoin(at),
        wide=is_wide(grad_output, at, g),
        interpreted=INTERPRETED,
    )
    with on_device(g):
        gradient_kernel[(parts, cdiv(channels, _TILE.channels))](
            grad=Image.of(grad_output), at=Image.of(at), g=Image.of(g), partial=partial, norm=norm,
            rows=rows, height=height, width=width, C=channels, negative_slope=slope, FORM=form, TILE=_TILE,
        )  # fmt: skip
        if sums is not None:
            _add_up(partial, sums, count, parts, channels)
    return g


def gate_gradient(grad_output: Tensor, features: Tensor, sums: Tensor | None) -> Tensor:
    """The gradient of the features [N, 2h, H, W] whose gate's result gets ``grad_output`` [N, h, H, W].

    ``sums`` [2h] is filled with its sum over the pixels.
    """
    n, units, height, width = grad_output.shape
    g = torch.empty_like(features, memory_format=torch.channels_last)
    rows = n * height * width
    parts = cdiv(rows, _TILE.rows * _TILE.tiles)
    partial = None if sums is None else torch.empty((parts, 2 * units), dtype=torch.float32, device=g.device)
    form = GradientForm(
        activation="none",
        norm="",
        write=True,
        sums=int(sums is not None),
        grad_pixels_innermost=not channels_adjoin(grad_output),
        at_pixels_innermost=not channels_adjoin(features),
        wide=is_wide(grad_output, features, g),
        interpreted=INTERPRETED,
    )
    with on_device(g):
        gate_gradient_kernel[(parts, cdiv(units, _TILE.channels))](
            grad=Image.of(grad_output), features=Image.of(features), g=Image.of(g), partial=partial,
            rows=rows, height=height, width=width, units=units, FORM=form, TILE=_TILE,
        )  # fmt: skip
        if sums is not None:
            _add_up(partial, sums, 1, parts, 2 * units)
    return g


def _add_up(partial: Tensor | None, sums: Tensor, count: int, parts: int, channels: int) -> None:
    add_up_kernel[(cdiv(channels, 32), count)](
        partial=partial, result=sums, parts=parts, C=channels, INTERPRETED=INTERPRETED, PARTS=64, CHANNELS=32
    )
