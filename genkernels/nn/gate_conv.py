"""``GateConv2d``: the masked convolution in front of gates that are computed unit by unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.masked_conv.mask import MaskSpec, mask_tensor
from .masked_conv import MaskedConv2d


class GateConv2d(MaskedConv2d):
    """Masked convolution to several gates of h channels each, one block of h after the other.

    The colour groups are those of the h units, the same in each of the gates: unit j of every gate sees the input
    groups that group ``j * channel_groups // h`` may see, whether or not h divides by the groups. So what the gates
    of a unit make together is of one group. (The groups of gates * h channels in one row are others: gates that are
    chunks of those mix groups.)

    Shape: [N, in_channels, H, W] -> [N, gates * h, H, W].
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, kernel_size: int | tuple[int, int],
        *, gates: int, mask_type: str, channel_groups: int, bias: bool = True, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        # The convolution itself gets no groups, and its weight is masked where the colours ask for it.
        super().__init__(
            in_channels, gates * hidden_channels, kernel_size,
            bias=bias, mask_type=mask_type, device=device, dtype=dtype,
        )  # fmt: skip
        self.gates = gates
        self.unit_groups = channel_groups

    def forward(self, input: Tensor) -> Tensor:
        weight, mask_type = self.live_weight()
        return ops.masked_conv2d(input, weight, self.bias, mask_type=mask_type)

    def live_weight(self) -> tuple[Tensor, str]:
        """The weight without what the colours hide, and the mask type for the rest."""
        if self.unit_groups == 1:
            return self.weight, self.mask_type
        # Mask B lets all colours through at the centre; what A hides there is among the zeros.
        return self.weight * self._colours(self.weight.device), "B"

    def _colours(self, device: torch.device) -> Tensor:
        """What the colours leave of the weight, bool [gates * h, in, kh, kw]: all but what the centre may not see."""
        units, groups = self.out_channels // self.gates, self.unit_groups
        of_unit = (torch.arange(units, device=device) * groups // units).repeat(self.gates)[:, None]
        of_input = torch.arange(self.in_channels, device=device) * groups // self.in_channels
        seen = of_input < of_unit if self.mask_type == "A" else of_input <= of_unit
        height, width = self.kernel_size
        beside = torch.arange(height * width, device=device) != height * width // 2
        return seen[:, :, None, None] | beside.view(height, width)

    def live_taps(self) -> Tensor:
        if self.unit_groups == 1:
            return super().live_taps()
        kernel = (self.kernel_size[0], self.kernel_size[1])
        before = MaskSpec(self.out_channels, self.in_channels, kernel, "B", 1, "blocks")
        return mask_tensor(before) * self._colours(torch.device("cpu"))

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.unit_groups == 1 else f"{text}, unit_groups={self.unit_groups}"
