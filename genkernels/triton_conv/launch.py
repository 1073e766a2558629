"""Launches of the tiled convolution: geometry, allocation and tile sizes around the kernels.

All of it runs on the caller's stream and device, synchronises nothing (tile sizes are timed once, see tuning.py) and
allocates through PyTorch alone, so a CUDA graph can capture it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from ..ops.core.cuda_device import float32_precision
from ..ops.core.strides import channels_adjoin, strides_of
from .forward import conv_kernel
from .gradient import add_up_kernel, gate_gradient_kernel, gradient_kernel
from .pack import pack_kernel
from .tap_geometry import Walk
from .tuning import Tile, choose, tilings
from .weight_gradient import MOST_PARTIAL_BYTES, reduce_kernel, weight_gradient_kernel

FEW_CHANNELS = 16  # below, the sum runs over (tap, channel) in one go, and any layout will do
_BLOCK = 1024
_NO_STRIDES = (0, 0, 0, 0)
_ROWS, _CHANNELS, _TILES = 64, 32, 8  # pixels and channels of a gradient's tile, and tiles of a program
INTERPRETED = bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True)
class Gate:
    """What a convolution to 2h channels adds before its gate makes h of them, and where it leaves them for backward."""

    addend: Tensor | None
    features: Tensor | None


def on_device(t: Tensor) -> AbstractContextManager[Any]:
    """Makes t's GPU the current one, which Triton launches on."""
    return torch.cuda.device(t.device) if t.is_cuda else nullcontext()


def readable(t: Tensor) -> Tensor:
    """t itself where its channels are innermost or few, else its one channels_last copy."""
    if t.shape[1] < FEW_CHANNELS or channels_adjoin(t):
        return t
    return torch.empty_like(t, memory_format=torch.channels_last).copy_(t)


def is_wide(*tensors: Tensor) -> bool:
    """Whether an index into one of them, or into its pixels, needs more than 31 bits (with room for a tile)."""
    spans = (sum((size - 1) * stride for size, stride in zip(t.shape, strides_of(t), strict=True)) for t in tensors)
    return max(spans) >= 2**31 - 2**20 or max(t.numel() for t in tensors) >= 2**31 - 2**20


def convolve(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    walk: Walk,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "none",
    slope: float = 0.0,
    stats: list[Tensor] | None = None,
    gate: Gate | None = None,
) -> None:
    """``y = act(conv(x, weight) * scale + bias)`` in place: x [N, C, H, W], weight [O, C, kh, kw], y [N, O, ...].

    Any strides; what is not as the kernel wants it is copied once. With ``gate`` y is [N, O / 2, H, W],
    ``tanh(a) * sigmoid(b)`` of the halves of ``features = conv(x, weight) + bias + addend``.
    To ``stats`` is appended a float32 [tiles, 3, O]: of every tile and channel the pixel count, mean and squared
    deviations from it.
    """
    if y.numel() == 0:
        return
    if y.shape[1] >= FEW_CHANNELS and not channels_adjoin(y):
        # Stored pixel by pixel from the tensor cores' registers, a contiguous y would spill them.
        last = torch.empty_like(y, memory_format=torch.channels_last)
        convolve(
            x, weight, last, walk,
            scale=scale, bias=bias, activation=activation, slope=slope, stats=stats, gate=gate,
        )  # fmt: skip
        y.copy_(last)
        return
    x = readable(x)
    channels, out_channels = weight.shape[1], weight.shape[0]
    height, width = (-(-size // phase) for size, phase in zip(y.shape[2:], walk.phases, strict=True))
    rows = y.shape[0] * height * width
    flat = channels < FEW_CHANNELS
    addend, features = (None, None) if gate is None else (gate.addend, gate.features)
    if addend is not None:
        addend = readable(addend)
    # Two halves of groups are walked by blocks where they are the sum's, or stand in pairs.
    in_order = not walk.interleaved and (not walk.halves or walk.centre == "backward" or gate is not None)
    by_blocks = bool(walk.centre) and in_order and not flat
    taps = walk.taps if by_blocks else walk.taps + bool(walk.centre)
    phases = walk.phases[0] * walk.phases[1]
    precision = float32_precision()
    wide = is_wide(*(t for t in (x, y, addend, features) if t is not None))

    def run(tile: Tile) -> None:
        packed, w_row = _pack(weight, walk, tile.k, flat, gate is not None)
        tiles_m = triton.cdiv(rows, tile.m)
        grid = (triton.cdiv(out_channels, tile.n) * tiles_m * phases,)
        part = None
        if stats is not None:
            part = torch.empty((tiles_m * phases, 3, out_channels), dtype=torch.float32, device=x.device)
            stats.append(part)
        conv_kernel[grid](
            x, packed, scale, bias, addend, y, features, part,
            rows, height, width,
            x.shape[2], x.shape[3], y.shape[2], y.shape[3],
            channels, out_channels, w_row,
            *walk.kernel, taps,
            walk.groups, int(walk.see_own),
            *walk.first, *walk.step, *walk.stride,
            slope,
            *strides_of(x), *strides_of(y),
            *(_NO_STRIDES if addend is None else strides_of(addend)),
            *(_NO_STRIDES if features is None else strides_of(features)),
            PHASE_H=walk.phases[0], PHASE_W=walk.phases[1],
            FLAT_K=flat, GROUPED=walk.centre if by_blocks else "", C_HALVES=walk.halves and walk.centre == "backward",
            HAS_SCALE=scale is not None, HAS_BIAS=bias is not None, ACTIVATION=activation,
            GATED=gate is not None, STATS=part is not None,
            WIDE=wide, PRECISION=precision, INTERPRETED=INTERPRETED,
            BM=tile.m, BN=tile.n, BK=tile.k,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    depth = walk.stored_taps * channels if flat else channels
    epilogue = (gate is not None, addend is not None, features is not None, stats is not None)
    key = ("convolve", x.dtype, precision, rows, channels, out_channels, replace(walk, first=(0, 0)), wide, *epilogue)
    with on_device(x):
        run(choose(key, _tilings(x, rows * phases, out_channels, depth, precision), run, x.device))


def weight_gradient(a: Tensor, x: Tensor, grad: Tensor, walk: Walk) -> None:
    """``grad[m, c, r, s] = sum over pixels p of a of a[p, m] * x[p * stride + first + (r, s) * step, c]``, in place.

    a [N, M, P, Q], x [N, C, H, W], grad [M, C, kh, kw] of any strides. Masked taps get zero.
    """
    a, x = readable(a), readable(x)
    rows, channels, out_channels = a.shape[0] * a.shape[2] * a.shape[3], x.shape[1], a.shape[1]
    taps = walk.taps + bool(walk.centre)
    columns = taps * channels
    flat = channels < FEW_CHANNELS
    precision, wide = float32_precision(), is_wide(a, x)

    def run(tile: Tile) -> None:
        tiles_n = triton.cdiv(columns, tile.n) if flat else taps * triton.cdiv(channels, tile.n)
        tiles = triton.cdiv(out_channels, tile.m) * tiles_n
        share, parts = _shares(a, rows, tiles, tile.k, 4 * out_channels * columns)
        partial = torch.empty((parts, out_channels, columns), dtype=torch.float32, device=a.device)
        if tiles and parts:
            weight_gradient_kernel[(triton.cdiv(out_channels, tile.m), tiles_n, parts)](
                a, x, partial,
                rows, a.shape[2], a.shape[3], x.shape[2], x.shape[3],
                out_channels, channels, walk.kernel[1], taps,
                walk.groups, int(walk.see_own),
                *walk.first, *walk.step, *walk.stride,
                share,
                *strides_of(a), *strides_of(x),
                FLAT=flat, GROUPED=bool(walk.centre) and not walk.interleaved, HALVES=walk.halves, WIDE=wide,
                PRECISION=precision, INTERPRETED=INTERPRETED,
                BM=tile.m, BN=tile.n, BK=tile.k,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        reduce_kernel[(triton.cdiv(grad.numel(), 256),)](
            partial, grad,
            parts, out_channels, channels, walk.units(out_channels, channels)[0],
            *walk.kernel, taps, walk.groups, int(walk.see_own),
            *strides_of(grad),
            CENTRE=bool(walk.centre), INTERLEAVED=walk.interleaved, INTERPRETED=INTERPRETED, PARTS=8, BLOCK=256,
        )  # fmt: skip

    key = ("weight_gradient", x.dtype, precision, rows, channels, out_channels, replace(walk, first=(0, 0)), wide)
    candidates = _tilings(a, out_channels, columns if flat else channels, rows, precision, split_depth=True)
    with on_device(a):
        run(choose(key, candidates, run, a.device))


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
    """The gradient that the products read: ``grad_output`` through activation and batch norm; see gradient.py.

    ``at`` is the activation's result or, with ``norm`` [4 or 6, C], z. ``sums`` is filled with the sum of g over the
    pixels [C], and with ``norm`` that of g * zhat too [2, C]. Returns grad_output itself where nothing changes it.
    """
    n, channels, height, width = grad_output.shape
    moved = channels >= FEW_CHANNELS and not channels_adjoin(grad_output)
    write = write and (norm is not None or activation != "none" or moved)
    if not write and sums is None:
        return grad_output
    at = grad_output if at is None else at
    g = torch.empty_like(grad_output, memory_format=torch.channels_last) if write else grad_output
    rows = n * height * width
    parts = triton.cdiv(rows, _ROWS * _TILES)
    count = 0 if sums is None else 1 if norm is None else 2
    partial = torch.empty((count, parts, channels), dtype=torch.float32, device=g.device) if count else None
    with on_device(g):
        gradient_kernel[(parts, triton.cdiv(channels, _CHANNELS))](
            grad_output, at, g, partial, norm,
            rows, height, width, channels, slope,
            *strides_of(grad_output), *strides_of(at), *strides_of(g),
            ACTIVATION=activation, NORM="" if norm is None else "gradient" if write else "sums",
            WRITE=write, SUMS=count,
            GRAD_PIXELS_INNERMOST=not channels_adjoin(grad_output), AT_PIXELS_INNERMOST=not channels_adjoin(at),
            WIDE=is_wide(grad_output, at, g), INTERPRETED=INTERPRETED,
            ROWS=_ROWS, CHANNELS=_CHANNELS, TILES=_TILES,
        )  # fmt: skip
        if sums is not None:
            add_up_kernel[(triton.cdiv(channels, 32), count)](
                partial, sums, parts, channels, INTERPRETED=INTERPRETED, PARTS=64, CHANNELS=32
            )
    return g


def gate_gradient(grad_output: Tensor, features: Tensor, sums: Tensor | None) -> Tensor:
    """The gradient of the features [N, 2h, H, W] whose gate's result gets ``grad_output`` [N, h, H, W].

    ``sums`` [2h] is filled with its sum over the pixels.
    """
    n, units, height, width = grad_output.shape
    g = torch.empty_like(features, memory_format=torch.channels_last)
    rows = n * height * width
    parts = triton.cdiv(rows, _ROWS * _TILES)
    partial = None if sums is None else torch.empty((parts, 2 * units), dtype=torch.float32, device=g.device)
    with on_device(g):
        gate_gradient_kernel[(parts, triton.cdiv(units, _CHANNELS))](
            grad_output, features, g, partial,
            rows, height, width, units,
            *strides_of(grad_output), *strides_of(features), *strides_of(g),
            SUMS=sums is not None,
            GRAD_PIXELS_INNERMOST=not channels_adjoin(grad_output),
            FEATURES_PIXELS_INNERMOST=not channels_adjoin(features),
            WIDE=is_wide(grad_output, features, g), INTERPRETED=INTERPRETED,
            ROWS=_ROWS, CHANNELS=_CHANNELS, TILES=_TILES,
        )  # fmt: skip
        if sums is not None:
            add_up_kernel[(triton.cdiv(2 * units, 32), 1)](
                partial, sums, parts, 2 * units, INTERPRETED=INTERPRETED, PARTS=64, CHANNELS=32
            )
    return g


def _pack(weight: Tensor, walk: Walk, step: int, flat: bool, gated: bool) -> tuple[Tensor, int]:
    """The packed weights of all phases, and the length of a row."""
    rows, channels = weight.shape[:2]
    tap_length = channels if flat else triton.cdiv(channels, step) * step
    w_row = triton.cdiv(walk.stored_taps * tap_length, step) * step
    packed = weight.new_empty((walk.phases[0] * walk.phases[1], rows, w_row))
    if packed.numel():
        pack_kernel[(triton.cdiv(packed.numel(), _BLOCK),)](
            weight, packed,
            rows, channels, *walk.units(rows, channels), packed.numel(),
            tap_length, w_row,
            *walk.kernel, walk.taps, walk.groups, int(walk.see_own), *walk.first,
            *strides_of(weight),
            PHASE_H=walk.phases[0], PHASE_W=walk.phases[1],
            CENTRE=walk.centre, INTERLEAVED=walk.interleaved, GATED=gated, BLOCK=_BLOCK,
        )  # fmt: skip
    return packed, w_row


def _shares(a: Tensor, rows: int, tiles: int, step: int, result_bytes: int) -> tuple[int, int]:
    """Pixels for one program, and how many programs share them: two waves of the GPU, and partials that stay small."""
    wanted = triton.cdiv(2 * max(_processors(a), 1), max(tiles, 1))
    wanted = max(1, min(wanted, MOST_PARTIAL_BYTES // max(result_bytes, 1), triton.cdiv(rows, 4 * step)))
    share = triton.cdiv(triton.cdiv(rows, wanted), step) * step
    return share, triton.cdiv(rows, share) if rows else 0


def _tilings(
    t: Tensor, rows: int, columns: int, depth: int, precision: str, *, split_depth: bool = False
) -> list[Tile]:
    processors, shared_bytes = _device_limits(t.device) if t.is_cuda else (0, 0)
    return tilings(
        rows, columns, depth,
        split_depth=split_depth,
        element_size=t.element_size(),
        tensor_cores=t.dtype != torch.float32 or precision == "tf32",
        processors=processors if not INTERPRETED else 0,
        shared_bytes=shared_bytes,
    )  # fmt: skip


def _processors(t: Tensor) -> int:
    return _device_limits(t.device)[0] if t.is_cuda and not INTERPRETED else 2


@lru_cache
def _device_limits(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and bytes of shared memory that a program can have."""
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return properties["multiprocessor_count"], properties["max_shared_mem"]
