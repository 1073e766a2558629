"""Availability of the Triton kernels for a tensor. Imports no Triton: that happens when one on a GPU arrives."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backends

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(x: Tensor) -> str | None:
    """The reason why the Triton kernels cannot take x, which lies on a GPU, or None where they can."""
    if x.dtype not in _DTYPES:
        return f"no Triton kernel for {x.dtype}"
    return backends.why_no_triton(x.device)
