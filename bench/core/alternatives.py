"""Names and memory layouts that the alternatives of several benchmarks have in common."""

from __future__ import annotations

import torch
from torch import Tensor

OURS = "ours"
COMPILED = "torch.compile"
LAST = ", channels_last"  # at the end of a name

Layout = torch.memory_format
NCHW = torch.contiguous_format
NHWC = torch.channels_last
LAYOUTS: dict[str, Layout] = {"": NCHW, LAST: NHWC}  # by the end of a name


def layout_of(name: str) -> Layout:
    return NHWC if name.endswith(LAST) else NCHW


def is_ours(name: str) -> bool:
    return name.startswith(OURS)


def to_layout(t: Tensor, layout: Layout) -> Tensor:
    # empty + copy_, since .contiguous() leaves a tensor of one channel, which fits both layouts, as it is.
    return torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=layout).copy_(t)
