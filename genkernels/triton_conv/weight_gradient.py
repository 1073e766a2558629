"""Weight gradient: a matrix product whose long axis is the pixels, split over programs and added up in a fixed order.

    grad[m, tap, c] = sum over pixels p of a[p, m] * x[p * stride + shift(tap), c]

A program makes a tile of `BM` channels of a x `BN` columns (tap, channel of x) for its share of the pixels. The result
is small and the sum long, so few tiles exist: the pixels are split until every multiprocessor has work, each share
writes float32 partials, and `reduce_kernel` adds them in order. No atomics: the same call gives the same bits. Traffic:
a and x once per tile of the other, through L2, and twice the partials, at most `MOST_PARTIAL_BYTES`. The tensor cores
bound it for 64 channels and more.

With 16 channels of x and more a tile belongs to one tap; with fewer it runs over (tap, channel).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .forward import rounded
from .pack import centre_is_live

MOST_PARTIAL_BYTES = 64 * 2**20


@triton.jit(
    do_not_specialize=[
        "rows", "P", "Q", "H", "W", "kernel_w", "taps", "groups", "see_own",
        "first_h", "first_w", "step_h", "step_w", "stride_h", "stride_w", "share",
    ]
)  # fmt: skip
def weight_gradient_kernel(
    a, x, partial,
    rows, P, Q, H, W,  # pixels of a in all, rows and columns of its images, rows and columns of those of x
    M, C, kernel_w, taps,  # taps: how many columns / C there are, the centre included
    groups, see_own,
    first_h, first_w, step_h, step_w, stride_h, stride_w,
    share,  # pixels for one program, whole steps
    as_n, as_c, as_h, as_w,
    xs_n, xs_c, xs_h, xs_w,
    FLAT: tl.constexpr, GROUPED: tl.constexpr, HALVES: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    m_tile = tl.program_id(0)
    columns = taps * C
    steps = tl.cdiv(share, BK)
    if FLAT:
        column = tl.program_id(1) * BN + tl.arange(0, BN)
        tap = column // C
        c = column % C
        live = column < columns
    else:
        per_tap = tl.cdiv(C, BN)
        tap = tl.program_id(1) // per_tap
        c_begin = tl.program_id(1) % per_tap * BN
        c = c_begin + tl.arange(0, BN)
        column = tap * C + c
        live = c < C
        if GROUPED:
            # A block of the centre tap in which nobody sees anybody is zero (reduce_kernel does not even read it).
            # HALVES: the groups are those of M / 2 units, twice.
            last = tl.minimum(m_tile * BM + BM, M) - 1
            units = M
            if HALVES:
                units = M // 2
                last = tl.where((m_tile * BM < units) & (last >= units), units - 1, last % units)
            dead = (tap == taps - 1) & (c_begin * groups // C >= last * groups // units + see_own)
            steps = tl.where(dead, 0, steps)
    dh = first_h + tap // kernel_w * step_h
    dw = first_w + tap % kernel_w * step_w
    m = m_tile * BM + tl.arange(0, BM)
    p = tl.program_id(2) * share + tl.arange(0, BK)
    end = tl.minimum(tl.program_id(2) * share + share, rows)
    if WIDE:
        p = tl.program_id(2).to(tl.int64) * share + tl.arange(0, BK)
        end = tl.minimum(tl.program_id(2).to(tl.int64) * share + share, rows)
        dh = dh.to(tl.int64)
        dw = dw.to(tl.int64)
        m = m.to(tl.int64)
        c = c.to(tl.int64)
    image = p // (P * Q)
    i = p // Q % P
    j = p % Q
    # A step of BK pixels in mixed radix, so that no division is left in the loop.
    step_image = BK // (P * Q)
    step_i = BK // Q % P
    step_j = BK % Q

    acc = tl.zeros((BM, BN), tl.float32)
    for _ in range(steps):
        valid = p < end
        a_row = image * as_n + i * as_h + j * as_w
        a_tile = a + (m * as_c)[:, None] + a_row[None, :]
        left = tl.load(a_tile, mask=(m < M)[:, None] & valid[None, :], other=0.0)
        h = i * stride_h
        v = j * stride_w
        x_row = image * xs_n + h * xs_h + v * xs_w
        if FLAT:
            hh = h[:, None] + dh[None, :]
            vv = v[:, None] + dw[None, :]
            inside = (hh >= 0) & (hh < H) & (vv >= 0) & (vv < W) & valid[:, None] & live[None, :]
            x_tile = x + x_row[:, None] + (dh * xs_h + dw * xs_w + c * xs_c)[None, :]
            right = tl.load(x_tile, mask=inside, other=0.0)
        else:
            inside = (h + dh >= 0) & (h + dh < H) & (v + dw >= 0) & (v + dw < W) & valid
            x_tile = x + (x_row + dh * xs_h + dw * xs_w)[:, None] + (c * xs_c)[None, :]
            right = tl.load(x_tile, mask=inside[:, None] & live[None, :], other=0.0)
        if INTERPRETED:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
        p += BK
        j += step_j
        over = j >= Q
        j = tl.where(over, j - Q, j)
        i += step_i + tl.where(over, 1, 0)
        over = i >= P
        i = tl.where(over, i - P, i)
        image += step_image + tl.where(over, 1, 0)
    target = partial + (tl.program_id(2).to(tl.int64) * M + m)[:, None] * columns + column[None, :]
    tl.store(target, acc, mask=(m < M)[:, None] & live[None, :])


@triton.jit(do_not_specialize=["parts", "M", "C", "m_units", "kernel_h", "kernel_w", "taps", "groups", "see_own"])
def reduce_kernel(
    partial, grad,
    parts, M, C, m_units, kernel_h, kernel_w, taps, groups, see_own,
    gs_m, gs_c, gs_h, gs_w,
    CENTRE: tl.constexpr,  # the last of the taps depends on groups
    INTERLEAVED: tl.constexpr, INTERPRETED: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the partials in order and writes the gradient in the weight's layout; a dead tap gets exactly zero."""
    line = kernel_h * kernel_w * C
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = e // line
    tap = e % line // C
    c = e % line % C
    exists = m < M
    live = exists & (tap < taps)
    if CENTRE:
        live = live & ((tap < taps - 1) | centre_is_live(m, c, m_units, C, groups, see_own, INTERLEAVED))
    total = tl.zeros((BLOCK,), tl.float32)
    columns = taps * C
    part = tl.arange(0, PARTS)
    for begin in range(0, parts, PARTS):  # several at a time, since each is a wait for memory
        at = partial + ((begin + part)[:, None] * M + m[None, :]) * columns + (tap * C + c)[None, :]
        total += tl.sum(tl.load(at, mask=live[None, :] & (begin + part < parts)[:, None], other=0.0), 0)
    target = grad + m * gs_m + c * gs_c + tap // kernel_w * gs_h + tap % kernel_w * gs_w
    tl.store(target, rounded(total, grad.dtype.element_ty, INTERPRETED), mask=exists)
