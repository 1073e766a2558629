"""``GateConv2d``: the masked convolution in front of gates that are computed unit by unit."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import ops
from ..ops.masked_conv.mask import MaskSpec, live_weight, mask_tensor
from .masked_conv import MaskedConv2d


class GateConv2d(MaskedConv2d):
    """Masked convolution to several gates of h channels each, one block of h after the other.

    The colour groups are those of the h units, the same in each of the gates: unit j of every gate sees the input
    groups that group ``j * channel_groups // h`` may see, whether or not h divides by the groups. So what the gates
    of a unit make together is of one group. (The groups of gates * h channels in one row are others: gates that are
    chunks of those mix groups.)

    Shape: [N, in_channels, H, W] -> [N, gates * h, H, W]; with an addend [N, 2h, H, W], which is added in front of
    two gates, their result ``tanh * sigmoid`` [N, h, H, W].
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

    def forward(self, input: Tensor, addend: Tensor | None = None) -> Tensor:
        if addend is None:
            weight, mask_type = self.live_weight()
            return ops.masked_conv2d(input, weight, self.bias, mask_type=mask_type)
        return ops.masked_conv2d_gated(
            input, self.weight, self.bias, addend, mask_type=self.mask_type, channel_groups=self.unit_groups
        )

    def live_weight(self) -> tuple[Tensor, str]:
        """The weight without what the colours hide, and the mask type for the rest."""
        return live_weight(self.weight, self.mask_type, self.unit_groups, gates=self.gates)

    def live_taps(self) -> Tensor:
        if self.unit_groups == 1:
            return super().live_taps()
        kernel = (self.kernel_size[0], self.kernel_size[1])
        before = MaskSpec(self.out_channels, self.in_channels, kernel, "B", 1, "blocks")
        return live_weight(mask_tensor(before), self.mask_type, self.unit_groups, gates=self.gates)[0]

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.unit_groups == 1 else f"{text}, unit_groups={self.unit_groups}"
