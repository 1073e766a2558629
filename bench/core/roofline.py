"""Roofline: the ceilings of this machine, and the least time that a piece of work can take under them.

The ceilings are measured, not read from a data sheet: the fused multiply-add rate of the instruction set that
the kernels use, with as many threads as torch uses, and the rate at which memory is copied (bytes read plus
written). On a GPU they are those of a large matrix product and of a large copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.core.gpu_timing import interleave_on_gpu
from genkernels import backends

COPY_BYTES = 1 << 27  # far beyond the last-level cache
_MATRIX = 8192
_GPU_COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class Work:
    """What a computation cannot do without.

    Attributes:
        flops: additions and multiplications, a multiply-add being two.
        bytes: memory traffic when every tensor is read or written exactly once.
    """

    flops: int
    bytes: int

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Ceilings:
    """What this machine can do: 1e9 floating-point operations and 1e9 bytes per second."""

    isa: str
    threads: int
    gflops: float
    gbs: float

    def floor(self, work: Work) -> float:
        """Seconds that the work takes at the least: for its arithmetic or its memory traffic, the larger.

        The memory part holds for data that come from memory; what still lies in a cache can be quicker.
        """
        return max(work.flops / (self.gflops * 1e9), work.bytes / (self.gbs * 1e9))

    def share_of_peak(self, work: Work, seconds: float) -> float:
        """The share of the arithmetic peak that doing the work in so many seconds means, 0 to 1."""
        return work.flops / seconds / (self.gflops * 1e9)

    def highest(self, other: Ceilings) -> Ceilings:
        """The higher of two measurements, for a machine that was not always free."""
        return Ceilings(self.isa, self.threads, max(self.gflops, other.gflops), max(self.gbs, other.gbs))


def measure_ceilings(seconds: float = 0.5) -> Ceilings:
    """Measure this machine, ``seconds`` for each ceiling.

    Raises:
        ImportError: the native extension, which holds the measuring loops, is not there.
    """
    native = backends.require_native()
    threads = torch.get_num_threads()
    return Ceilings(
        isa=native.active_isa(),
        threads=threads,
        gflops=native.fma_peak_gflops(threads, seconds),
        gbs=native.copy_bandwidth_gbs(threads, seconds, COPY_BYTES),
    )


def measure_gpu_ceilings(dtype: torch.dtype, seconds: float = 0.5) -> Ceilings:
    """The rate of a large matrix product in this dtype, and of a large copy (bytes read plus written)."""
    a, b = (torch.randn(_MATRIX, _MATRIX, device="cuda").to(dtype) for _ in range(2))
    source = torch.empty(_GPU_COPY_BYTES, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    times = interleave_on_gpu({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, seconds=seconds)
    return Ceilings(
        isa=str(dtype).removeprefix("torch."),
        threads=torch.cuda.get_device_properties(0).multi_processor_count,
        gflops=2 * _MATRIX**3 / times["product"].median * 1e-9,
        gbs=2 * _GPU_COPY_BYTES / times["copy"].median * 1e-9,
    )
