"""Tile sizes: which are worth trying for a problem, which one won, and the file that remembers it.

The first call of a new shape times at most four tilings (a second or two each, mostly compilation) and keeps the
winner, in memory and in one small file per GPU and version under the user's cache directory. Nothing is timed, and
the first guess is taken, where timing is impossible or unwanted: while a CUDA graph is captured, under
``torch.use_deterministic_algorithms`` (another tiling rounds differently), and with ``GENKERNELS_AUTOTUNE=0``.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from ..version import __version__

MOST_TILINGS = 4
_REPEATS = 7


class Tile(NamedTuple):
    """One program's share: an m x n tile of the result, k of the sum at a time, by so many warps and stages."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    def shared_bytes(self, element_size: int) -> int:
        return (self.m + self.n) * self.k * element_size * self.stages


# In order of reuse (products per byte read). 8 warps are two groups of the four that a Hopper tensor core instruction
# takes. Depth in flight is about 100 to 150 KiB, which covers the latency of L2 on an H100; what does not fit into a
# smaller GPU's shared memory is left out below. (m, n, warps, stages)
_TENSOR_CORE = ((128, 256, 8, 3), (256, 128, 8, 3), (128, 128, 8, 4), (128, 64, 4, 4), (64, 128, 4, 4), (64, 64, 4, 4),
                (128, 32, 4, 4), (32, 128, 4, 4), (64, 32, 4, 4), (32, 64, 4, 4), (128, 16, 4, 4), (16, 128, 4, 4),
                (32, 32, 4, 4), (16, 16, 1, 2))  # fmt: skip
# Full float32 runs on the ordinary cores, from registers: a large tile would spill.
_FLOAT32 = ((64, 64, 8, 2), (128, 32, 8, 2), (32, 128, 8, 2), (64, 32, 4, 2), (32, 32, 4, 2), (64, 16, 4, 2),
            (16, 64, 4, 2), (16, 16, 1, 2))  # fmt: skip
_INTERPRETED = (32, 32, 1, 1)


def tilings(
    rows: int,
    columns: int,
    depth: int,
    *,
    split_depth: bool = False,
    element_size: int,
    tensor_cores: bool,
    processors: int,
    shared_bytes: int,
) -> list[Tile]:
    """Tilings for a product [rows, depth] x [depth, columns], the best guess first; ``processors`` 0: interpreted.

    A step of the sum is 128 bytes of an operand, one swizzled row of shared memory, or less where depth is. The guess
    is the least estimated time: full waves of programs, or all programs where ``split_depth`` makes as many as wanted.
    """
    k = min(128 // element_size, max(16, _power_of_two(depth)))
    if not processors:
        return [Tile(_INTERPRETED[0], _INTERPRETED[1], 16, *_INTERPRETED[2:])]
    shapes = [Tile(m, n, k, warps, stages) for m, n, warps, stages in (_TENSOR_CORE if tensor_cores else _FLOAT32)]
    fitting = [tile for tile in shapes if tile.shared_bytes(element_size) <= shared_bytes]
    narrow = [t for t in fitting if t.m <= max(16, _power_of_two(rows)) and t.n <= max(16, _power_of_two(columns))]

    def tiles(t: Tile) -> int:
        return -(-rows // t.m) * -(-columns // t.n)

    def cost(t: Tile) -> float:
        """Waves of programs x the time of one: its products, or what it must read where that takes longer."""
        waves = tiles(t) if split_depth else -(-tiles(t) // processors)
        return waves * max(t.m * t.n, 64 * (t.m + t.n))

    return sorted(narrow, key=cost)[:MOST_TILINGS]


def choose(
    key: tuple[object, ...], candidates: Sequence[Tile], run: Callable[[Tile], None], device: torch.device
) -> Tile:
    """The quickest candidate for this key; ``run`` launches the kernel with a tile and has no lasting effect.

    Raises:
        RuntimeError: no candidate runs on this GPU, with what the last one said.
    """
    if len(candidates) == 1 or device.type != "cuda":
        return candidates[0]
    if os.environ.get("GENKERNELS_AUTOTUNE") == "0" or torch.are_deterministic_algorithms_enabled():
        return candidates[0]
    cache = _cache(torch.cuda.get_device_name(device))
    name = repr(key)
    if cache.winners.get(name) not in candidates:
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]
        cache.add(name, _quickest(candidates, run))
    return cache.winners[name]


def _quickest(candidates: Sequence[Tile], run: Callable[[Tile], None]) -> Tile:
    from triton.runtime.errors import OutOfResources

    times: dict[Tile, float] = {}
    for tile in candidates:
        try:
            run(tile)  # compiles
        except OutOfResources as error:
            reason = error
            continue
        samples = []
        for _ in range(_REPEATS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run(tile)
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end))
        times[tile] = sorted(samples)[_REPEATS // 2]
    if not times:
        raise RuntimeError(f"no tiling fits this GPU: {reason}") from reason
    return min(times, key=times.__getitem__)


class WinnerFile:
    """Winners by problem, kept in a JSON file that several processes may write: read, merged, replaced at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.winners = self._read()

    def add(self, name: str, tile: Tile) -> None:
        self.winners[name] = tile
        merged = self._read() | self.winners
        text = json.dumps(merged, indent=1)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
                whole = Path(folder) / self.path.name
                whole.write_text(text)
                os.replace(whole, self.path)
        except OSError as error:  # a home that cannot be written to costs time alone, once per process
            warnings.warn(f"genkernels cannot remember its tile sizes in {self.path}: {error}", stacklevel=2)

    def _read(self) -> dict[str, Tile]:
        try:
            return {key: Tile(*value) for key, value in json.loads(self.path.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            warnings.warn(f"genkernels ignores {self.path}: {error}", stacklevel=3)
            return {}


@lru_cache
def _cache(gpu: str) -> WinnerFile:
    import triton

    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return WinnerFile(root / "genkernels" / f"tiles-{slug}-genkernels-{__version__}-triton-{triton.__version__}.json")


def _power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()
