"""Which taps of a masked convolution are live: the one definition that every backend follows.

Pixels are ordered row by row, and inside a pixel the colour groups are ordered 0, 1, 2, ... A kernel tap is live
when it lies before the centre in that order; the centre tap itself is live for the channel pairs that the groups
allow (van den Oord et al. 2016, "Pixel Recurrent Neural Networks", section 3.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

MASK_TYPES = ("A", "B")
GROUP_LAYOUTS = ("blocks", "interleaved")


def channel_group_of(channels: int, groups: int, layout: str) -> list[int]:
    """The colour group of every channel: balanced blocks (any ``channels``), or ``c % groups``.

    "halves" is balanced blocks in each half: the two channels of a gated unit belong to the unit's group.
    """
    if layout == "interleaved":
        return [c % groups for c in range(channels)]
    if layout == "halves":
        return 2 * channel_group_of(channels // 2, groups, "blocks")
    return [c * groups // channels for c in range(channels)]


@dataclass(frozen=True)
class MaskSpec:
    """Everything that decides the mask of one weight, hashable so that derived tables can be cached.

    Attributes:
        out_channels, in_channels, kernel: the shape of the weight, ``kernel`` as (height, width), both odd.
        mask_type: "A" hides the pixel itself (its own colour group), "B" shows it.
        channel_groups: number of colour groups, 1 for none.
        group_layout: "blocks", "interleaved", or "halves": of the output channels, while those of x are in blocks.
    """

    out_channels: int
    in_channels: int
    kernel: tuple[int, int]
    mask_type: str
    channel_groups: int
    group_layout: str

    def out_groups(self) -> list[int]:
        return channel_group_of(self.out_channels, self.channel_groups, self.group_layout)

    def in_groups(self) -> list[int]:
        layout = "blocks" if self.group_layout == "halves" else self.group_layout
        return channel_group_of(self.in_channels, self.channel_groups, layout)

    def full_taps(self) -> list[tuple[int, int]]:
        """Kernel positions (row, column) that are live for every channel pair: all before the centre."""
        height, width = self.kernel
        above = [(r, c) for r in range(height // 2) for c in range(width)]
        left = [(height // 2, c) for c in range(width // 2)]
        return above + left

    def centre_is_live(self, out_group: int, in_group: int) -> bool:
        return in_group < out_group or (self.mask_type == "B" and in_group == out_group)


@lru_cache(maxsize=256)
def mask_tensor(spec: MaskSpec) -> Tensor:
    """The 0/1 mask, float32 on the CPU, ``[out_channels, in_channels, kh, kw]``. Shared: never write to it."""
    height, width = spec.kernel
    mask = torch.zeros(spec.out_channels, spec.in_channels, height, width)
    for row, column in spec.full_taps():
        mask[:, :, row, column] = 1
    out_group, in_group = torch.tensor(spec.out_groups()), torch.tensor(spec.in_groups())
    live = in_group[None, :] < out_group[:, None]
    if spec.mask_type == "B":
        live |= in_group[None, :] == out_group[:, None]
    mask[:, :, height // 2, width // 2] = live.float()
    return mask
