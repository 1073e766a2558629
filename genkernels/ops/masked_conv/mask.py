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

    @classmethod
    def of(cls, weight: Tensor, mask_type: str, channel_groups: int, group_layout: str) -> MaskSpec:
        """That of a weight [out_channels, in_channels, kh, kw]."""
        out_channels, in_channels, height, width = weight.shape
        return cls(out_channels, in_channels, (height, width), mask_type, channel_groups, group_layout)

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


def live_taps(spec: MaskSpec, device: torch.device | str = "cpu") -> Tensor:
    """The mask, bool [out_channels, in_channels, kh, kw], in operators that a tracer can follow."""
    height, width = spec.kernel
    tap, centre = torch.arange(height * width, device=device), height * width // 2
    layout = "blocks" if spec.group_layout == "halves" else spec.group_layout
    of_output = _group_of(spec.out_channels, spec.channel_groups, spec.group_layout, device)[:, None]
    of_input = _group_of(spec.in_channels, spec.channel_groups, layout, device)
    seen = of_input < of_output if spec.mask_type == "A" else of_input <= of_output
    live = (tap < centre) | (seen[:, :, None] & (tap == centre))
    return live.view(spec.out_channels, spec.in_channels, height, width)


def _group_of(channels: int, groups: int, layout: str, device: torch.device | str) -> Tensor:
    """:func:`channel_group_of`, [channels]."""
    if layout == "halves":
        return _group_of(channels // 2, groups, "blocks", device).repeat(2)
    channel = torch.arange(channels, device=device)
    return channel % groups if layout == "interleaved" else channel * groups // channels


@lru_cache(maxsize=256)
def mask_tensor(spec: MaskSpec) -> Tensor:
    """The 0/1 mask, float32 on the CPU, ``[out_channels, in_channels, kh, kw]``. Shared: never write to it."""
    return live_taps(spec).float()


def live_weight(weight: Tensor, mask_type: str, groups: int, *, gates: int) -> tuple[Tensor, str]:
    """The weight [gates * h, C, kh, kw] without what the colours hide, and the mask type for the rest.

    Unit u has the colour ``u * groups // h`` in every gate.
    """
    if groups == 1:
        return weight, mask_type
    outputs, inputs, height, width = weight.shape
    units = outputs // gates
    of_unit = (torch.arange(units, device=weight.device) * groups // units).repeat(gates)[:, None]
    of_input = torch.arange(inputs, device=weight.device) * groups // inputs
    seen = of_input < of_unit if mask_type == "A" else of_input <= of_unit
    beside = torch.arange(height * width, device=weight.device) != height * width // 2
    # Mask B lets all colours through at the centre; what A hides there is among the zeros.
    return weight * (seen[:, :, None, None] | beside.view(height, width)), "B"
