"""Dtypes: the native kernels' codes for what tensors are stored in, and what sums are kept in."""

from __future__ import annotations

import torch
from torch import Tensor

STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""As ``_C`` has them (csrc/cpu/core/tensor_view.h); for other dtypes it has no kernels."""


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums and statistics are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def as_dtype(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values if values.dtype == dtype else values.to(dtype)  # comparing costs 6 us less than Tensor.to


def per_channel(values: Tensor | None, x: Tensor) -> Tensor | None:
    """One number per channel of x, as the kernels read it: dense, in the accumulator's dtype."""
    return None if values is None else as_dtype(values, accumulator(x.dtype)).contiguous()
