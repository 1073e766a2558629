"""Freed memory that stays with the process.

Training allocates the same large buffers in every step. glibc hands memory of that size back to the system as soon
as it is freed, and takes it again page by page, zeroed: on a step of 40 ms that can be 10 to 20 ms.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_GIB = 2**30


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed, for the whole process; True where that was possible.

    Memory then stays at its peak until the process ends. The command line and the benchmarks do this; a script of
    your own may (``genkernels.keep_freed_memory()``), or be run with jemalloc or tcmalloc, to the same effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _GIB)) and bool(mallopt(_TRIM_THRESHOLD, 2 * _GIB - 1))
