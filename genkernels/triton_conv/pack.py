"""The weight's live taps as the matrix products read them: one row per output channel, channels in innermost.

A row holds (tap, channel) in the order in which the convolution walks them, each tap padded with zeros to whole steps
of the walk (or, where K is walked flat, the row alone), hidden channel pairs of the centre tap zero: what stands in a
masked weight is never read. With phases, every phase has rows of its own with the taps that reach it, the longest
phase's length each. For a gate the rows of a unit's two halves stand side by side, so that one tile makes both. A few
hundred kilobytes once per call; the time is that of a launch.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def centre_is_live(o, c, o_units, c_units, groups, see_own, INTERLEAVED: tl.constexpr):
    """Whether output channel o sees input channel c of the same pixel; see masked_conv/mask.py.

    The groups are those of o_units and c_units channels, and repeat after so many: two halves have the same ones.
    """
    if INTERLEAVED:
        difference = o % groups - c % groups
    else:
        difference = o % o_units * groups // o_units - c % c_units * groups // c_units
    return difference + see_own > 0


@triton.jit(
    do_not_specialize=[
        "OUT", "C", "o_units", "c_units", "total", "kernel_h", "kernel_w", "taps", "groups", "see_own",
        "pad_h", "pad_w",
    ]
)  # fmt: skip
def pack_kernel(
    weight, packed,
    OUT, C, o_units, c_units, total,  # rows (of a phase), channels, those the groups repeat after, elements of packed
    tap_length, w_row,  # elements of one tap, and of one row
    kernel_h, kernel_w, taps, groups, see_own, pad_h, pad_w,
    ws_o, ws_c, ws_h, ws_w,
    PHASE_H: tl.constexpr, PHASE_W: tl.constexpr,
    CENTRE: tl.constexpr,  # "" | "forward" | "backward": the tap after the live ones exists, by groups
    INTERLEAVED: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    line = e // w_row
    o = line % OUT
    if GATED:
        o = o % 2 * (OUT // 2) + o // 2
    tap = e % w_row // tap_length
    c = e % w_row % tap_length
    live = (e < total) & (c < C)
    if PHASE_H * PHASE_W > 1:
        phase = line // OUT
        skip_h = (phase // PHASE_W + pad_h) % PHASE_H
        skip_w = (phase % PHASE_W + pad_w) % PHASE_W
        taps_w = tl.maximum(kernel_w - skip_w + PHASE_W - 1, 0) // PHASE_W
        r = skip_h + tap // tl.maximum(taps_w, 1) * PHASE_H
        s = skip_w + tap % tl.maximum(taps_w, 1) * PHASE_W
        live = live & (r < kernel_h) & (s < kernel_w)
    else:
        r = tap // kernel_w
        s = tap % kernel_w
        if CENTRE == "forward":
            seen = centre_is_live(o, c, o_units, c_units, groups, see_own, INTERLEAVED)
            live = live & ((tap < taps) | ((tap == taps) & seen))
        elif CENTRE == "backward":
            seen = centre_is_live(c, o, c_units, o_units, groups, see_own, INTERLEAVED)
            live = live & ((tap < taps) | ((tap == taps) & seen))
        else:
            live = live & (tap < taps)
    value = tl.load(weight + o * ws_o + c * ws_c + r * ws_h + s * ws_w, mask=live, other=0.0)
    tl.store(packed + e, value, mask=e < total)
