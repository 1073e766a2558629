"""Packed weights, the live taps as the GEMMs read them: one row per output channel, channels in innermost.

A row holds (tap, channel) in the order in which the convolution walks them, each tap padded with zeros to whole steps
of the walk (or, where K is walked flat, the row alone), hidden channel pairs of the centre tap zero: what stands in a
masked weight is never read. With phases, every phase has rows of its own with the taps that reach it, the longest
phase's length each. For a gate the rows of a unit's two halves stand side by side, so that one tile makes both. A few
hundred kilobytes once per call; the time is that of a launch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .arguments import Image, Taps
from .launch import cdiv
from .tap_geometry import TapGeometry

_BLOCK = 1024


class PackSizes(NamedTuple):
    """Rows (of a phase), channels, those the groups of both repeat after, and elements of all; passed as `Taps` are."""

    outputs: Any
    inputs: Any
    output_units: Any
    input_units: Any
    total: Any


class PackForm(NamedTuple):
    """What `pack_kernel` is compiled for."""

    phase_h: int
    phase_w: int
    centre: str  # "" | "forward" | "backward": the tap after the live ones exists, by groups
    interleaved: bool
    gated: bool


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


@triton.jit(do_not_specialize=[*PackSizes._fields, *Taps._fields, "pad_h", "pad_w"])
def pack_kernel(
    weight: Image, packed, tap_length, row_length,  # elements of one tap, and of one row
    outputs, inputs, output_units, input_units, total,  # PackSizes
    kernel_h, kernel_w, count, groups, see_own,  # Taps
    pad_h, pad_w,
    FORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    line = e // row_length
    o = line % outputs
    if FORM.gated:
        o = o % 2 * (outputs // 2) + o // 2
    tap = e % row_length // tap_length
    c = e % row_length % tap_length
    live = (e < total) & (c < inputs)
    if FORM.phase_h * FORM.phase_w > 1:
        phase = line // outputs
        skip_h = (phase // FORM.phase_w + pad_h) % FORM.phase_h
        skip_w = (phase % FORM.phase_w + pad_w) % FORM.phase_w
        taps_w = tl.maximum(kernel_w - skip_w + FORM.phase_w - 1, 0) // FORM.phase_w
        r = skip_h + tap // tl.maximum(taps_w, 1) * FORM.phase_h
        s = skip_w + tap % tl.maximum(taps_w, 1) * FORM.phase_w
        live = live & (r < kernel_h) & (s < kernel_w)
    else:
        r = tap // kernel_w
        s = tap % kernel_w
        if FORM.centre == "forward":
            seen = centre_is_live(o, c, output_units, input_units, groups, see_own, FORM.interleaved)
            live = live & ((tap < count) | ((tap == count) & seen))
        elif FORM.centre == "backward":
            seen = centre_is_live(c, o, input_units, output_units, groups, see_own, FORM.interleaved)
            live = live & ((tap < count) | ((tap == count) & seen))
        else:
            live = live & (tap < count)
    value = tl.load(weight.pointer + o * weight.n + c * weight.c + r * weight.h + s * weight.w, mask=live, other=0.0)
    tl.store(packed + e, value, mask=e < total)


def pack(weight: Tensor, geometry: TapGeometry, step: int, flat: bool, gated: bool) -> tuple[Tensor, int]:
    """The packed weights of all phases, and the length of a row; ``step``: channels of a step of the walk."""
    outputs, inputs = weight.shape[:2]
    tap_length = inputs if flat else cdiv(inputs, step) * step
    row_length = cdiv(geometry.stored_taps * tap_length, step) * step
    packed = weight.new_empty((geometry.phases[0] * geometry.phases[1], outputs, row_length))
    if packed.numel():
        sizes = PackSizes(outputs, inputs, *geometry.units(outputs, inputs), packed.numel())
        pack_kernel[(cdiv(packed.numel(), _BLOCK),)](
            weight=Image.of(weight), packed=packed, tap_length=tap_length, row_length=row_length,
            **sizes._asdict(), **geometry.counted(geometry.taps)._asdict(),
            pad_h=geometry.first[0], pad_w=geometry.first[1],
            FORM=PackForm(*geometry.phases, geometry.centre, geometry.interleaved, gated), BLOCK=_BLOCK,
        )  # fmt: skip
    return packed, row_length
