"""Implicit GEMM over live taps: the convolution, forward or to its input, plain, strided or transposed.

One program makes a tile of `BM` output pixels x `BN` output channels, and walks K = taps x channels in steps of `BK`;
no patch matrix exists. x is read once per tap and tile column (from L2, since neighbouring programs share it), the
packed weights once per tile row, y is written once. With channels innermost both operands are 16-byte loads that
pipeline through shared memory into the tensor cores, which should bound it from about 64 channels on, and the reads
below that. Measured on one H100 at commit bff14a1 neither does: forward and backward of a gated 3x3 mask B, 128 ->
256, bfloat16, reach 27 % of the peak, a first layer 3 -> 128 3 %, and a training step of a transposed block takes 1.8
to 2.3 times as long as torch.compile's. Fewer than 16 channels would waste the tensor core's depth, so then K is
walked as one run over (tap, channel).

A tap is a shift of the pixel: first + index * step. With PHASE_H x PHASE_W > 1 the kernel is a transposed convolution
of that stride: every output phase is a small convolution of its own over the taps that reach it, nothing is multiplied
by an inserted zero. With colour groups the last tap, the centre, is walked over the channels that some output channel
of the tile sees; pairs inside such a block that are hidden have a packed weight of zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.core.cuda_device import float32_precision
from .arguments import INTERPRETED, Image, Pixels, Shifts, Taps
from .elementwise import pixel_offset
from .epilogue import Epilogue, OutputPixels, store_affine, store_gated, store_statistics
from .launch import FEW_CHANNELS, cdiv, is_readable, is_wide, readable, run_with_best_tile
from .pack import pack
from .tap_geometry import TapGeometry
from .tuning import Tile


class Channels(NamedTuple):
    """Channels in and out, and the length of a row of packed weights (of one phase)."""

    inputs: Any
    outputs: Any
    weight_row: Any


class ConvForm(NamedTuple):
    """What `conv_kernel` is compiled for."""

    phase_h: int
    phase_w: int
    flat_k: bool  # K is one run over (tap, channel)
    grouped: str  # "" | "forward": o sees the c of earlier groups | "backward": o is seen by later ones
    halved_inputs: bool  # each half of the channels in has the groups of half as many units
    activation: str
    gated: bool  # y is tanh(first half) * sigmoid(second half), packed in pairs, each with its addend
    wide: bool  # 64-bit index arithmetic
    precision: str
    interpreted: bool  # by Triton's interpreter, whose tl.dot is wrong in bfloat16


class TapRun(NamedTuple):
    """The taps of one output phase: how many, how many a row, the shift of the first one; and which phase it is."""

    count: Any
    width: Any
    h: Any
    w: Any
    phase_h: Any
    phase_w: Any


class TilePixels(NamedTuple):
    """The tile's M axis: image, row and column of each pixel, whether it exists, and where x is read at shift 0."""

    image: Any
    i: Any
    j: Any
    valid: Any
    h: Any
    w: Any
    x_row: Any  # offset of that pixel


class TileWeights(NamedTuple):
    """The first BK packed weights of the tile's columns, and which columns there are."""

    pointers: Any
    mask: Any


@triton.jit
def taps_of_phase(phase, taps: Taps, shifts: Shifts, FORM: tl.constexpr):
    """The taps that reach an output phase; all live ones where there are no phases."""
    if FORM.phase_h * FORM.phase_w > 1:
        # first_h, first_w are the padding; output q * PHASE + phase gets tap r from input q + (phase + pad - r) / PHASE
        phase_h = phase // FORM.phase_w
        phase_w = phase % FORM.phase_w
        skip_h = (phase_h + shifts.first_h) % FORM.phase_h
        skip_w = (phase_w + shifts.first_w) % FORM.phase_w
        h = (phase_h + shifts.first_h - skip_h) // FORM.phase_h
        w = (phase_w + shifts.first_w - skip_w) // FORM.phase_w
        width = tl.maximum(taps.kernel_w - skip_w + FORM.phase_w - 1, 0) // FORM.phase_w
        count = tl.maximum(taps.kernel_h - skip_h + FORM.phase_h - 1, 0) // FORM.phase_h * width
        run = TapRun(count, width, h, w, phase_h, phase_w)
    else:
        run = TapRun(taps.count, taps.kernel_w, shifts.first_h, shifts.first_w, 0, 0)
    return run


@triton.jit
def pixels_of_tile(row, x: Image, pixels: Pixels, shifts: Shifts):
    image = row // (pixels.height * pixels.width)
    i = row // pixels.width % pixels.height
    j = row % pixels.width
    valid = row < pixels.rows
    h = i * shifts.stride_h
    w = j * shifts.stride_w
    return TilePixels(image, i, j, valid, h, w, pixel_offset(x, image, h, w))


@triton.jit
def walk_flat_k(
    x: Image, weights: TileWeights, at: TilePixels, run: TapRun, pixels: Pixels, shifts: Shifts, channels: Channels, k,
    FORM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The product of a tile where K is one run over (tap, channel)."""
    BM: tl.constexpr = TILE.m
    BN: tl.constexpr = TILE.n
    acc = tl.zeros((BM, BN), tl.float32)
    depth = run.count * channels.inputs
    for k0 in range(0, depth, TILE.k):
        kk = k0 + k
        tap = kk // channels.inputs
        dh = run.h + tap // run.width * shifts.step_h
        dw = run.w + tap % run.width * shifts.step_w
        hh = at.h[:, None] + dh[None, :]
        ww = at.w[:, None] + dw[None, :]
        inside = (hh >= 0) & (hh < pixels.x_height) & (ww >= 0) & (ww < pixels.x_width)
        inside = inside & at.valid[:, None] & (kk < depth)[None, :]
        x_k = dh * x.h + dw * x.w + kk % channels.inputs * x.c
        a = tl.load(x.pointer + at.x_row[:, None] + x_k[None, :], mask=inside, other=0.0)
        b = tl.load(weights.pointers + k0, mask=weights.mask, other=0.0)
        if FORM.interpreted:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=FORM.precision)
    return acc


@triton.jit
def blocks_of_centre(n_tile, taps: Taps, channels: Channels, FORM: tl.constexpr, TILE: tl.constexpr):
    """Begin and end of the blocks of BK input channels that some output channel of the tile sees in the centre tap."""
    begin = 0
    end = tl.cdiv(channels.inputs, TILE.k)
    if FORM.grouped == "forward":
        last = tl.minimum(n_tile * TILE.n + TILE.n, channels.outputs) - 1
        if FORM.gated:
            group = last // 2 * taps.groups // (channels.outputs // 2)
        else:
            group = last * taps.groups // channels.outputs
        end = tl.cdiv(tl.cdiv((group + taps.see_own) * channels.inputs, taps.groups), TILE.k)
    else:
        units = channels.inputs
        if FORM.halved_inputs:
            units = channels.inputs // 2
        first = n_tile * TILE.n * taps.groups // channels.outputs + 1 - taps.see_own
        begin = tl.cdiv(first * units, taps.groups) // TILE.k
    return begin, end


@triton.jit
def walk_taps(
    x: Image, weights: TileWeights, at: TilePixels, run: TapRun, pixels: Pixels, taps: Taps, shifts: Shifts,
    channels: Channels, k, n_tile, FORM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The product of a tile tap by tap, each in steps of BK channels; the centre of colour groups comes last."""
    BM: tl.constexpr = TILE.m
    BN: tl.constexpr = TILE.n
    BK: tl.constexpr = TILE.k
    tap_h = run.h
    acc = tl.zeros((BM, BN), tl.float32)
    chunks = tl.cdiv(channels.inputs, BK)
    steps = run.count * chunks
    begin = 0
    if FORM.grouped != "":
        begin, end = blocks_of_centre(n_tile, taps, channels, FORM, TILE)
        steps += tl.maximum(end - begin, 0)
    # The running position (tap, chunk) is carried along, as divisions would cost more than they look.
    tap = 0
    column = 0
    c = tl.where(run.count == 0, begin * BK, 0)
    for _ in range(steps):
        dh = tap_h
        dw = run.w + column * shifts.step_w
        shift = dh * x.h + dw * x.w
        if FORM.wide:
            shift = dh.to(tl.int64) * x.h + dw.to(tl.int64) * x.w
        inside = (at.h + dh >= 0) & (at.h + dh < pixels.x_height)
        inside = inside & (at.w + dw >= 0) & (at.w + dw < pixels.x_width) & at.valid
        ck = c + k
        x_tile = x.pointer + (at.x_row + shift)[:, None] + (ck * x.c)[None, :]
        a = tl.load(x_tile, mask=inside[:, None] & (ck < channels.inputs)[None, :], other=0.0)
        b = tl.load(weights.pointers + (tap * chunks * BK + c), mask=weights.mask, other=0.0)
        if FORM.interpreted:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=FORM.precision)
        c += BK
        next_tap = c >= channels.inputs
        tap = tl.where(next_tap, tap + 1, tap)
        c = tl.where(next_tap, tl.where(tap == run.count, begin * BK, 0), c)
        column = tl.where(next_tap, column + 1, column)
        next_line = column == run.width
        tap_h = tl.where(next_line, tap_h + shifts.step_h, tap_h)
        column = tl.where(next_line, 0, column)
    return acc


@triton.jit(do_not_specialize=[*Pixels._fields, *Taps._fields, *Shifts._fields, "y_height", "y_width"])
def conv_kernel(
    x: Image, weight, y: Image, addend: Image, features: Image, channels: Channels, epilogue: Epilogue,
    rows, height, width, x_height, x_width,  # Pixels: those of one phase
    kernel_h, kernel_w, count, groups, see_own,  # Taps
    first_h, first_w, step_h, step_w, stride_h, stride_w,  # Shifts
    y_height, y_width,
    FORM: tl.constexpr, TILE: tl.constexpr,  # ConvForm, tuning.Tile
):  # fmt: skip
    BN: tl.constexpr = TILE.n
    BK: tl.constexpr = TILE.k
    pixels = Pixels(rows, height, width, x_height, x_width)
    taps = Taps(kernel_h, kernel_w, count, groups, see_own)
    shifts = Shifts(first_h, first_w, step_h, step_w, stride_h, stride_w)

    # Columns innermost, so that programs side by side read the same x.
    tiles_n = tl.cdiv(channels.outputs, BN)
    tiles_m = tl.cdiv(rows, TILE.m)
    pid = tl.program_id(0)
    n_tile = pid % tiles_n
    m_tile = (pid // tiles_n) % tiles_m
    phase = pid // (tiles_n * tiles_m)
    run = taps_of_phase(phase, taps, shifts, FORM)
    m = tl.arange(0, TILE.m)
    n = n_tile * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    row = m_tile * TILE.m + m
    if FORM.wide:
        row = m_tile.to(tl.int64) * TILE.m + m
        n = n.to(tl.int64)
        k = k.to(tl.int64)
    at = pixels_of_tile(row, x, pixels, shifts)
    weights = TileWeights(
        weight + phase * channels.outputs * channels.weight_row + n[None, :] * channels.weight_row + k[:, None],
        (n < channels.outputs)[None, :],
    )
    if FORM.flat_k:
        acc = walk_flat_k(x, weights, at, run, pixels, shifts, channels, k, FORM, TILE)
    else:
        acc = walk_taps(x, weights, at, run, pixels, taps, shifts, channels, k, n_tile, FORM, TILE)

    h = at.i * FORM.phase_h + run.phase_h
    w = at.j * FORM.phase_w + run.phase_w
    valid = at.valid & (h < y_height) & (w < y_width)
    out_at = OutputPixels(at.image, h, w, valid, pixel_offset(y, at.image, h, w))
    if FORM.gated:
        store_gated(acc, y, addend, features, out_at, n_tile, epilogue, channels.outputs // 2, FORM, TILE)
    else:
        out = store_affine(acc, y, out_at, n, epilogue, channels.outputs, FORM)
        if epilogue.statistics is not None:
            part = phase * tiles_m + m_tile
            store_statistics(epilogue.statistics, out, valid, part, n, channels.outputs)


@dataclass(frozen=True)
class Gate:
    """What a convolution to 2h channels adds before its gate makes h of them, and where it leaves them for backward."""

    addend: Tensor | None
    features: Tensor | None


def convolve(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    geometry: TapGeometry,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "none",
    slope: float = 0.0,
    stats: list[Tensor] | None = None,
    gate: Gate | None = None,
) -> None:
    """``y = act(conv(x, weight) * scale + bias)`` in place: x [N, C, H, W], weight [O, C, kh, kw], y [N, O, ...].

    Any strides; what is not as the kernel reads and writes it is copied once. With ``gate`` y is [N, O / 2, H, W],
    ``tanh(a) * sigmoid(b)`` of the halves of ``features = conv(x, weight) + bias + addend``.
    To ``stats`` is appended a float32 [tiles, 3, O]: of every tile and channel the pixel count, mean and squared
    deviations from it.
    """
    if y.numel() == 0:
        return
    # Stored pixel by pixel from the tensor cores' registers, a contiguous y would spill them.
    target = y if is_readable(y) else torch.empty_like(y, memory_format=torch.channels_last)
    x = readable(x)
    addend, features = (None, None) if gate is None else (gate.addend, gate.features)
    if addend is not None:
        addend = readable(addend)
    channels = Channels(weight.shape[1], weight.shape[0], 0)
    height, width = (cdiv(size, phase) for size, phase in zip(y.shape[2:], geometry.phases, strict=True))
    pixels = Pixels(y.shape[0] * height * width, height, width, x.shape[2], x.shape[3])
    phases = geometry.phases[0] * geometry.phases[1]
    flat = channels.inputs < FEW_CHANNELS
    # Two halves of groups are walked by blocks where they are the sum's, or stand in pairs.
    in_order = not geometry.interleaved and (not geometry.halves or geometry.centre == "backward" or gate is not None)
    by_blocks = bool(geometry.centre) and in_order and not flat
    taps = geometry.counted(geometry.taps if by_blocks else geometry.taps + bool(geometry.centre))
    form = ConvForm(
        *geometry.phases,
        flat_k=flat,
        grouped=geometry.centre if by_blocks else "",
        halved_inputs=geometry.halves and geometry.centre == "backward",
        activation=activation,
        gated=gate is not None,
        wide=is_wide(*(t for t in (x, target, addend, features) if t is not None)),
        precision=float32_precision(),
        interpreted=INTERPRETED,
    )

    def run(tile: Tile) -> None:
        packed, row_length = pack(weight, geometry, tile.k, flat, form.gated)
        tiles_m = cdiv(pixels.rows, tile.m)
        part = None
        if stats is not None:
            part = torch.empty((tiles_m * phases, 3, channels.outputs), dtype=torch.float32, device=x.device)
            stats.append(part)
        conv_kernel[(cdiv(channels.outputs, tile.n) * tiles_m * phases,)](
            x=Image.of(x), weight=packed, y=Image.of(target), addend=Image.of(addend), features=Image.of(features),
            channels=channels._replace(weight_row=row_length), epilogue=Epilogue(scale, bias, part, slope),
            **pixels._asdict(), **taps._asdict(), **geometry.shifts._asdict(), y_height=y.shape[2], y_width=y.shape[3],
            FORM=form, TILE=tile, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    epilogue = (gate is not None, addend is not None, features is not None, stats is not None)
    key = ("convolve", x.dtype, form.precision, pixels.rows, channels.inputs, channels.outputs,
           replace(geometry, first=(0, 0)), form.wide, *epilogue)  # fmt: skip
    run_with_best_tile(
        run, x, key,
        rows=pixels.rows * phases, columns=channels.outputs,
        depth=geometry.stored_taps * channels.inputs if flat else channels.inputs, precision=form.precision,
    )  # fmt: skip
    if target is not y:
        y.copy_(target)
