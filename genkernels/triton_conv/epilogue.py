"""Epilogue of the convolution: scale, bias, activation or gate, and statistics, before a tile of y is stored.

A gate makes h channels of 2h. Packed side by side, a unit's two halves are neighbours in the accumulator, in the same
thread's registers: it splits them, and the 2h features reach memory only where backward will want them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arguments import Image
from .elementwise import activate, load_halves, pixel_offset, rounded, store_halves


class Epilogue(NamedTuple):
    """Scale and bias [O], or None; where the statistics go [tiles, 3, O], or None; the slope of a leaky ReLU."""

    scale: Any
    bias: Any
    statistics: Any
    slope: Any


class OutputPixels(NamedTuple):
    """The pixels of y that a tile makes: image, row and column, whether they exist, and their offsets."""

    image: Any
    h: Any
    w: Any
    valid: Any
    y_row: Any


@triton.jit
def store_affine(acc, y: Image, at: OutputPixels, n, epilogue: Epilogue, outputs, FORM: tl.constexpr):
    """y = act(acc * scale + bias); returns it as it was rounded."""
    ACTIVATION: tl.constexpr = FORM.activation
    if epilogue.scale is not None:
        acc *= tl.load(epilogue.scale + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    if epilogue.bias is not None:
        acc += tl.load(epilogue.bias + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    out = rounded(activate(acc, epilogue.slope, ACTIVATION), y.pointer.dtype.element_ty, FORM.interpreted)
    y_tile = y.pointer + at.y_row[:, None] + (n * y.c)[None, :]
    tl.store(y_tile, out, mask=at.valid[:, None] & (n < outputs)[None, :])
    return out


@triton.jit
def store_gated(
    acc, y: Image, addend: Image, features: Image, at: OutputPixels, n_tile, epilogue: Epilogue, units,
    FORM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """y = tanh(a) * sigmoid(b), a and b the halves of features = acc + bias + addend, which are stored if there."""
    BM: tl.constexpr = TILE.m
    HALF: tl.constexpr = TILE.n // 2
    unit = n_tile * HALF + tl.arange(0, HALF)
    if FORM.wide:
        unit = unit.to(tl.int64)
    there = at.valid[:, None] & (unit < units)[None, :]
    content, gate = tl.split(tl.reshape(acc, (BM, HALF, 2)))
    if epilogue.bias is not None:
        content += tl.load(epilogue.bias + unit, mask=unit < units, other=0.0).to(tl.float32)[None, :]
        gate += tl.load(epilogue.bias + units + unit, mask=unit < units, other=0.0).to(tl.float32)[None, :]
    if addend.pointer is not None:
        added = load_halves(addend, pixel_offset(addend, at.image, at.h, at.w), unit, units, there)
        content += added[0]
        gate += added[1]
    if features.pointer is not None:
        row = pixel_offset(features, at.image, at.h, at.w)
        store_halves(features, row, unit, units, content, gate, there, FORM.interpreted)
    out = activate(content, epilogue.slope, "tanh") * activate(gate, epilogue.slope, "sigmoid")
    y_tile = y.pointer + at.y_row[:, None] + (unit * y.c)[None, :]
    tl.store(y_tile, rounded(out, y.pointer.dtype.element_ty, FORM.interpreted), mask=there)


@triton.jit
def store_statistics(statistics, out, valid, part, n, outputs):
    """[3, O] of one tile of y as it was rounded: how many pixels, their mean, squared deviations from it."""
    z = tl.where(valid[:, None], out.to(tl.float32), 0.0)
    count = tl.sum(valid.to(tl.float32), 0)
    mean = tl.sum(z, 0) / tl.maximum(count, 1.0)
    deviation = tl.where(valid[:, None], z - mean[None, :], 0.0)
    target = statistics + part.to(tl.int64) * 3 * outputs + n
    tl.store(target, tl.zeros_like(mean) + count, mask=n < outputs)
    tl.store(target + outputs, mean, mask=n < outputs)
    tl.store(target + 2 * outputs, tl.sum(deviation * deviation, 0), mask=n < outputs)
