"""Common parts of launches: the current device, layouts the kernels read, width of indices, tile sizes, split-K.

All launches run on the caller's stream and device, synchronise nothing (tile sizes are timed once, see tuning.py) and
allocate through PyTorch alone, so a CUDA graph can capture them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from ..ops.core.strides import channels_adjoin, strides_of
from .arguments import INTERPRETED
from .tuning import Tile, choose, tilings

FEW_CHANNELS = 16  # below, the sum runs over (tap, channel) in one go, and any layout will do
_MOST_PARTIAL_BYTES = 64 * 2**20  # of the partial sums of a split-K product
_INDICES = 2**31 - 2**20  # from so many elements on they have 64 bits; with room for a tile


def cdiv(n: int, step: int) -> int:
    """n / step, rounded up; ``triton.cdiv`` takes 2 us."""
    return -(-n // step)


def on_device(t: Tensor) -> AbstractContextManager[Any]:
    """Makes t's GPU the current one, which Triton launches on."""
    return torch.cuda.device(t.device) if t.is_cuda else nullcontext()


def is_readable(t: Tensor) -> bool:
    """Whether t's channels are innermost or few."""
    return t.shape[1] < FEW_CHANNELS or channels_adjoin(t)


def readable(t: Tensor) -> Tensor:
    """t itself where the kernels read it well, else its one channels_last copy."""
    return t if is_readable(t) else torch.empty_like(t, memory_format=torch.channels_last).copy_(t)


def is_wide(*tensors: Tensor) -> bool:
    """Whether an index into one of them, or into its pixels, needs more than 31 bits."""
    spans = (sum((size - 1) * stride for size, stride in zip(t.shape, strides_of(t), strict=True)) for t in tensors)
    return max(spans) >= _INDICES or max(t.numel() for t in tensors) >= _INDICES


def run_with_best_tile(
    run: Callable[[Tile], None], t: Tensor, key: tuple[object, ...],
    *, rows: int, columns: int, depth: int, precision: str, split_k: bool = False,
) -> None:  # fmt: skip
    """Runs a product [rows, depth] x [depth, columns] of t's type and device with the tile that is best for ``key``."""
    with on_device(t):
        run(choose(key, _tilings(t, rows, columns, depth, precision, split_k), run, t.device))


def split_k(a: Tensor, rows: int, tiles: int, step: int, result_bytes: int) -> tuple[int, int]:
    """Pixels for one program, and how many programs share them: two waves of the GPU, and partials that stay small."""
    wanted = cdiv(2 * (_limits(a)[0] or 2), max(tiles, 1))
    wanted = max(1, min(wanted, _MOST_PARTIAL_BYTES // max(result_bytes, 1), cdiv(rows, 4 * step)))
    share = cdiv(cdiv(rows, wanted), step) * step
    return share, cdiv(rows, share) if rows else 0


def _tilings(t: Tensor, rows: int, columns: int, depth: int, precision: str, split_k: bool) -> list[Tile]:
    processors, shared_bytes = _limits(t)
    return tilings(
        rows, columns, depth,
        split_depth=split_k,
        element_size=t.element_size(),
        tensor_cores=t.dtype != torch.float32 or precision == "tf32",
        processors=processors,
        shared_bytes=shared_bytes,
    )  # fmt: skip


def _limits(t: Tensor) -> tuple[int, int]:
    """Multiprocessors of t's GPU, and the bytes of shared memory of a program; zeros where kernels are interpreted."""
    return _device_limits(t.device) if t.is_cuda and not INTERPRETED else (0, 0)


@lru_cache
def _device_limits(device: torch.device) -> tuple[int, int]:
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return properties["multiprocessor_count"], properties["max_shared_mem"]
