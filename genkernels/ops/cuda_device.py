"""Where the CUDA kernels of the native extension are launched."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import backends


@dataclass(frozen=True)
class Device:
    """Where kernels are launched.

    Attributes:
        native: the module that holds them.
        index: the CUDA device's number.
        limits: multiprocessors, bytes of shared memory that a block can have, blocks of the largest cluster.
    """

    native: Any
    index: int
    limits: tuple[int, int, int]

    def current(self) -> contextlib.AbstractContextManager[Any]:
        """Makes this the current device, for what torch does meanwhile."""
        return torch.cuda.device(self.index)

    def stream(self) -> int:
        """The address of the caller's stream."""
        return torch.cuda.current_stream(self.index).cuda_stream


@lru_cache
def _device(index: int) -> Device:
    native = backends.require_native()
    return Device(native, index, native.cuda_device_limits(index))


def device_of(t: Tensor) -> Device:
    """The device that computes what t takes part in."""
    return _device(t.get_device())
