"""The device on which the native CUDA kernels are launched, and how it is to multiply float32."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ... import backends


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


def float32_precision() -> str:
    """How a GPU multiplies float32: "tf32", its factors rounded to TF32, or "ieee".

    As PyTorch is told to do it in its own convolutions, which are what masked convolutions, blocks and recurrences
    replace: ``torch.backends.cudnn.conv.fp32_precision``, where "none" stands for the setting above it and, without
    any, for exact products (that is what ``torch.backends.cudnn.allow_tf32 = False`` leaves). What PyTorch's matrix
    products take, ``torch.set_float32_matmul_precision``, is of no account.
    """
    conv = getattr(torch.backends.cudnn, "conv", None)  # older versions have one switch alone
    tf32 = torch.backends.cudnn.allow_tf32 if conv is None else conv.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


@lru_cache
def _device(index: int) -> Device:
    native = backends.require_native()
    return Device(native, index, native.cuda_device_limits(index))


def device_of(t: Tensor) -> Device:
    """The device that computes what t takes part in."""
    return _device(t.get_device())
