"""Elementwise parts of the kernels: activations and their derivatives, rounding, loads and stores of image tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import Image


@triton.jit
def pixel_offset(image: Image, n, h, w):
    """Offset of the first channel of pixel (h, w) of the n-th image."""
    return n * image.n + h * image.h + w * image.w


@triton.jit
def rounded(v, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 to the nearest of DTYPE. Triton's interpreter cuts bfloat16 off instead, so round for it."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = v.to(tl.uint32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
        v = tl.where(v == v, nearest, v)
    return v.to(DTYPE)


@triton.jit
def load_halves(image: Image, row, unit, units, mask):
    """Both halves of the channels, in float32, from the offsets of the pixels."""
    tile = image.pointer + row[:, None]
    first = tl.load(tile + (unit * image.c)[None, :], mask=mask, other=0.0).to(tl.float32)
    second = tl.load(tile + ((units + unit) * image.c)[None, :], mask=mask, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def store_halves(image: Image, row, unit, units, first, second, mask, INTERPRETED: tl.constexpr):
    tile = image.pointer + row[:, None]
    dtype = image.pointer.dtype.element_ty
    tl.store(tile + (unit * image.c)[None, :], rounded(first, dtype, INTERPRETED), mask=mask)
    tl.store(tile + ((units + unit) * image.c)[None, :], rounded(second, dtype, INTERPRETED), mask=mask)


@triton.jit
def activate(v, slope, ACTIVATION: tl.constexpr):
    """The activation, in float32; a NaN stays one."""
    if ACTIVATION == "relu":
        v = tl.where(v < 0, 0.0, v)
    elif ACTIVATION == "leaky_relu":
        v = tl.where(v < 0, v * slope, v)
    elif ACTIVATION == "sigmoid":
        v = 1 / (1 + tl.exp(-v))
    elif ACTIVATION == "tanh":
        e = tl.exp(-2 * tl.abs(v))
        t = (1 - e) / (1 + e)
        v = tl.where(v < 0, -t, t)
    return v


@triton.jit
def slope_at(y, negative_slope, ACTIVATION: tl.constexpr):
    """The derivative of the activation where its result is y."""
    if ACTIVATION == "tanh":
        slope = 1 - y * y
    elif ACTIVATION == "sigmoid":
        slope = y * (1 - y)
    elif ACTIVATION == "leaky_relu":
        slope = tl.where(y > 0, 1.0, negative_slope)
    else:
        slope = tl.where(y > 0, 1.0, 0.0)
    return slope
