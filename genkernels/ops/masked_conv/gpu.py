"""Whether the Triton kernels can take a tensor; imports Triton when the first one on a GPU arrives."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ... import backends

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(x: Tensor) -> str | None:
    """The reason why the Triton kernels cannot take x, or None where they can."""
    if x.dtype not in _DTYPES:
        return f"no Triton kernel for {x.dtype}"
    return _missing(x.device)


@lru_cache
def _missing(device: torch.device) -> str | None:
    return backends.why_no_triton(device)
