"""What stands between an incoming gradient and the products of a backward pass: activation and batch norm.

One pass over [pixels, channels] tiles: g = grad_y * act'(at), `at` being y, or z under batch norm, from which zhat and
the activation's argument are worked out again; then the sums of g and g * zhat over the pixels, or what the products
read, ``factor * (g - mean_g - zhat * mean_g_zhat)``, written with channels innermost. Memory bounds it: 2 images read,
1 written. Under a gate g has twice the channels of grad_y.

Why not in the loaders of the two products, without ever writing g. Let G be the bytes of g. This pass moves 3 G, and
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

import triton
import triton.language as tl

from .forward import activate, rounded


@triton.jit
def load_tile(image, rows, channels, mask, PIXELS_INNERMOST: tl.constexpr):
    """[pixels, channels] from their offsets, by threads side by side along what is contiguous."""
    if PIXELS_INNERMOST:
        return tl.trans(tl.load(image + channels[:, None] + rows[None, :], mask=tl.trans(mask), other=0.0))
    return tl.load(image + rows[:, None] + channels[None, :], mask=mask, other=0.0)


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


@triton.jit(do_not_specialize=["rows", "H", "W", "negative_slope"])
def gradient_kernel(
    grad, at, g, partial, norm,
    rows, H, W, C, negative_slope,
    gs_n, gs_c, gs_h, gs_w,
    as_n, as_c, as_h, as_w,
    os_n, os_c, os_h, os_w,
    ACTIVATION: tl.constexpr,
    NORM: tl.constexpr,  # "" | "sums" | "gradient"; norm: mean, rstd, weight, bias, mean_g, mean_g_zhat, [C] each
    WRITE: tl.constexpr, SUMS: tl.constexpr,  # how many sums a channel has in partial [SUMS, programs, C]
    GRAD_PIXELS_INNERMOST: tl.constexpr, AT_PIXELS_INNERMOST: tl.constexpr,
    WIDE: tl.constexpr, INTERPRETED: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * (ROWS * TILES)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = c < C
    if WIDE:
        first = tl.program_id(0).to(tl.int64) * (ROWS * TILES)
        c = c.to(tl.int64)
    row = first + tl.arange(0, ROWS)
    if NORM != "":
        mean = tl.load(norm + c, mask=there, other=0.0)[None, :]
        rstd = tl.load(norm + C + c, mask=there, other=0.0)[None, :]
        weight = tl.load(norm + 2 * C + c, mask=there, other=0.0)[None, :]
        bias = tl.load(norm + 3 * C + c, mask=there, other=0.0)[None, :]
    if NORM == "gradient":
        mean_g = tl.load(norm + 4 * C + c, mask=there, other=0.0)[None, :]
        mean_g_zhat = tl.load(norm + 5 * C + c, mask=there, other=0.0)[None, :]
    total = tl.zeros((CHANNELS,), tl.float32)
    total_zhat = tl.zeros((CHANNELS,), tl.float32)
    for _ in range(tl.minimum(tl.cdiv(rows - first, ROWS), TILES)):
        n = row // (H * W)
        h = row // W % H
        w = row % W
        mask = (row < rows)[:, None] & there[None, :]
        v = load_tile(grad, n * gs_n + h * gs_h + w * gs_w, c * gs_c, mask, GRAD_PIXELS_INNERMOST).to(tl.float32)
        if NORM != "" or ACTIVATION != "none":
            y = load_tile(at, n * as_n + h * as_h + w * as_w, c * as_c, mask, AT_PIXELS_INNERMOST).to(tl.float32)
        if NORM != "":
            zhat = tl.where(mask, (y - mean) * rstd, 0.0)
            y = activate(zhat * weight + bias, negative_slope, ACTIVATION)
        if ACTIVATION != "none":
            v = v * slope_at(y, negative_slope, ACTIVATION)
        if SUMS > 0:
            total += tl.sum(v, 0)
        if SUMS > 1:
            total_zhat += tl.sum(v * zhat, 0)
        if NORM == "gradient":
            v = rstd * weight * (v - mean_g - zhat * mean_g_zhat)
        if WRITE:
            out = rounded(v, g.dtype.element_ty, INTERPRETED)
            tl.store(g + (n * os_n + h * os_h + w * os_w)[:, None] + (c * os_c)[None, :], out, mask=mask)
        row += ROWS
    if SUMS > 0:
        tl.store(partial + tl.program_id(0) * C + c, total, mask=there)
    if SUMS > 1:
        tl.store(partial + (tl.num_programs(0) + tl.program_id(0)) * C + c, total_zhat, mask=there)


@triton.jit(do_not_specialize=["rows", "H", "W"])
def gate_gradient_kernel(
    grad, features, g, partial,
    rows, H, W, units,
    gs_n, gs_c, gs_h, gs_w,
    fs_n, fs_c, fs_h, fs_w,
    os_n, os_c, os_h, os_w,
    SUMS: tl.constexpr,
    GRAD_PIXELS_INNERMOST: tl.constexpr, FEATURES_PIXELS_INNERMOST: tl.constexpr,
    WIDE: tl.constexpr, INTERPRETED: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """g [pixels, 2 units] of y = tanh(a) * sigmoid(b), a and b the halves of the features; partial [pid, 2 units]."""
    first = tl.program_id(0) * (ROWS * TILES)
    u = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = u < units
    if WIDE:
        first = tl.program_id(0).to(tl.int64) * (ROWS * TILES)
        u = u.to(tl.int64)
    row = first + tl.arange(0, ROWS)
    total_a = tl.zeros((CHANNELS,), tl.float32)
    total_b = tl.zeros((CHANNELS,), tl.float32)
    for _ in range(tl.minimum(tl.cdiv(rows - first, ROWS), TILES)):
        n = row // (H * W)
        h = row // W % H
        w = row % W
        mask = (row < rows)[:, None] & there[None, :]
        f_row = n * fs_n + h * fs_h + w * fs_w
        v = load_tile(grad, n * gs_n + h * gs_h + w * gs_w, u * gs_c, mask, GRAD_PIXELS_INNERMOST).to(tl.float32)
        a = load_tile(features, f_row, u * fs_c, mask, FEATURES_PIXELS_INNERMOST).to(tl.float32)
        b = load_tile(features, f_row, (units + u) * fs_c, mask, FEATURES_PIXELS_INNERMOST).to(tl.float32)
        a = activate(a, 0.0, "tanh")
        b = activate(b, 0.0, "sigmoid")
        g_a = v * b * slope_at(a, 0.0, "tanh")
        g_b = v * a * slope_at(b, 0.0, "sigmoid")
        if SUMS:
            total_a += tl.sum(g_a, 0)
            total_b += tl.sum(g_b, 0)
        g_row = g + (n * os_n + h * os_h + w * os_w)[:, None]
        tl.store(g_row + (u * os_c)[None, :], rounded(g_a, g.dtype.element_ty, INTERPRETED), mask=mask)
        tl.store(g_row + ((units + u) * os_c)[None, :], rounded(g_b, g.dtype.element_ty, INTERPRETED), mask=mask)
        row += ROWS
    if SUMS:
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
