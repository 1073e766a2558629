"""``GatedMaskedConv2d``: the layer of the gated PixelCNN, whose two stacks leave no blind spot."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.masked_conv.functional import check_options
from ..ops.masked_conv.reference import gate
from .gate_conv import GateConv2d
from .init import init_live_taps
from .masked_conv import MaskedConv2d

# E[tanh(a)^2] E[sigmoid(b)^2] for a and b from N(0, 1): what is left of the features' power behind a gate.
GATE_POWER = 0.394 * 0.293


class GatedMaskedConv2d(nn.Module):
    """One layer of two stacks: the vertical one sees whole rows above, the horizontal one the pixels to the left.

    With p = ``kernel_size``, * a convolution and [V, H] what comes in::

        above  = vertical(V)                ceil(p/2) x p, the rows above (mask A: and nothing of the own row)
        beside = horizontal(H) + 1x1(above) 1 x p, masked; the 1x1 reads the features before their gate
        V'     = tanh(above_1) * sigmoid(above_2)
        H'     = 1x1(tanh(beside_1) * sigmoid(beside_2)) + H       (mask A: without "+ H")

    The horizontal stack may see rows above its own alone, so the vertical features have to come down one row once.
    That happens in the first layer, of mask type A, whose vertical convolution ends one row higher; in all layers
    after it, of type B, row i of V knows the image above row i and goes to row i of H. (To move it in every layer
    leaves out pixels near the right edge: a blind spot again.)

    A condition adds a bias to both halves of both gates: the same everywhere, or, where it is a map over the image, one
    for each place. The colour order holds in the horizontal stack, for all
    channel counts: both halves of a unit belong to the unit's group. The vertical stack sees all colours.

    Args:
        in_channels: channels of V and of H; with mask type B ``hidden_channels``, since H is added to the result.
        hidden_channels: channels of each result, h.
        kernel_size: p, odd.
        mask_type: "A" for the first layer, which gets the image as V and as H; "B" for the others.
        channel_groups: colour groups that order the channels inside a pixel, in blocks: channel c of n is in group
            ``c * channel_groups // n``.
        condition_channels: length of the condition; None for none.

    Shape: [N, in_channels, H, W] twice, and [N, condition_channels] or [N, condition_channels, H, W] ->
    [N, hidden_channels, H, W] twice. float64, float32, bfloat16, float16; channels_last inputs give channels_last
    outputs.

    The ``state_dict`` holds the convolutions ``vertical`` [2h, in, ceil(p/2), p], ``horizontal`` [2h, in, 1, p],
    ``vertical_to_horizontal`` [2h, 2h, 1, 1] without bias and ``out`` [h, h, 1, 1], and, with a condition, the linear
    layer ``condition`` [4h, condition_channels] without bias: 2h for V, then 2h for H. The first h channels of 2h go
    through the tanh.

    Raises:
        ValueError: an argument does not fit, or a condition is missing or not asked for; the message names it.

    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", sections 2.1 to 2.3.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: int,
        *,
        mask_type: str,
        channel_groups: int = 1,
        condition_channels: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_options(mask_type, channel_groups, "blocks", None)
        for name, channels in (("in_channels", in_channels), ("hidden_channels", hidden_channels)):
            if not isinstance(channels, int) or channels < channel_groups:
                raise ValueError(f"{name}: expected at least channel_groups = {channel_groups}; got {channels}")
        if mask_type == "B" and in_channels != hidden_channels:
            raise ValueError(
                f"in_channels: expected hidden_channels = {hidden_channels} with mask_type 'B', which adds its input "
                f"to its result; got {in_channels}"
            )
        if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, so that there is a centre tap; got {kernel_size!r}")
        if condition_channels is not None and (not isinstance(condition_channels, int) or condition_channels < 1):
            raise ValueError(
                f"condition_channels: expected None or a whole number of at least 1; got {condition_channels!r}"
            )
        super().__init__()
        self.in_channels, self.hidden_channels, self.kernel_size = in_channels, hidden_channels, kernel_size
        self.mask_type, self.channel_groups, self.condition_channels = mask_type, channel_groups, condition_channels
        options = {"device": device, "dtype": dtype}
        wide, side = 2 * hidden_channels, kernel_size // 2
        self.rows_above = side  # that the vertical kernel reads beside its last one
        self.shift = 1 if mask_type == "A" else 0  # how far above its own row that last one is
        # No tap of the vertical kernel is masked: a plain convolution wastes nothing.
        self.vertical = nn.Conv2d(in_channels, wide, (side + 1, kernel_size), padding=(0, side), **options)
        self.horizontal = GateConv2d(
            in_channels, hidden_channels, (1, kernel_size),
            gates=2, mask_type=mask_type, channel_groups=channel_groups, **options,
        )  # fmt: skip
        # A 1x1 of type B without groups is a plain 1x1, on the kernels of this library.
        self.vertical_to_horizontal = MaskedConv2d(wide, wide, 1, bias=False, mask_type="B", **options)
        self.out = MaskedConv2d(
            hidden_channels, hidden_channels, 1, mask_type="B", channel_groups=channel_groups, **options
        )
        self.condition = None
        if condition_channels is not None:
            self.condition = nn.Linear(condition_channels, 2 * wide, bias=False, **options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random weights that keep the size of the features: of about 1 before each gate and behind each 1x1."""
        # With mask B, V comes from a gate; H does not.
        init_live_taps(self.vertical, 1.0 if self.mask_type == "A" else 1 / GATE_POWER)
        init_live_taps(self.horizontal, 0.5)
        init_live_taps(self.vertical_to_horizontal, 0.5)
        init_live_taps(self.out, 1 / GATE_POWER)
        if self.condition is not None:
            self.condition.reset_parameters()

    def forward(self, vertical: Tensor, horizontal: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if (condition is None) != (self.condition is None):
            wanted = "None" if self.condition is None else f"[N, {self.condition_channels}]"
            raise ValueError(f"condition: expected {wanted}; got {'None' if condition is None else 'a tensor'}")
        rows = F.pad(vertical, (0, 0, self.rows_above + self.shift, -self.shift))
        above = self.vertical(rows)  # [N, 2h, H, W]
        from_above = self.vertical_to_horizontal(above)  # [N, 2h, H, W]
        if self.condition is not None:
            if isinstance(condition, Tensor) and condition.dim() == 4:  # what torch.fx traces counts as a vector
                biases = F.conv2d(condition, self.condition.weight[:, :, None, None])
            else:
                biases = self.condition(condition)[:, :, None, None]
            for_above, for_beside = biases.chunk(2, 1)  # [N, 2h, 1 or H, 1 or W] each
            above, from_above = above + for_above, from_above + for_beside
        out = self.out(self.horizontal(horizontal, from_above))  # the convolution and its gate
        return gate(above), out if self.mask_type == "A" else out + horizontal

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.hidden_channels}, kernel_size={self.kernel_size}"
        text += f", mask_type={self.mask_type!r}"
        if self.channel_groups != 1:
            text += f", channel_groups={self.channel_groups}"
        return text if self.condition is None else f"{text}, condition_channels={self.condition_channels}"
