"""``RowLSTM`` and ``DiagonalBiLSTM``: the recurrent layers of PixelRNN, input-to-state convolution included."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.masked_conv.functional import check_options
from ..ops.wavefront_lstm.converters import input_from_conv2d, state_from_conv1d
from ..ops.wavefront_lstm.functional import DIAGONAL_TAPS, ROW_TAPS
from .gate_conv import GateConv2d


class _Recurrence(nn.Module):
    """The parameters of one direction: input-to-state convolution, state-to-state weight, initial state."""

    h0: nn.Parameter | None
    c0: nn.Parameter | None

    def __init__(
        self, in_channels: int, hidden_channels: int, kernel_size: tuple[int, int], taps: int,
        mask_type: str, channel_groups: int, learned_state: bool, device: Any, dtype: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.input_to_state = GateConv2d(
            in_channels, hidden_channels, kernel_size,
            gates=4, mask_type=mask_type, channel_groups=channel_groups, **options,
        )  # fmt: skip
        self.state_weight = nn.Parameter(torch.empty(taps, 4 * hidden_channels, hidden_channels, **options))
        for name in ("h0", "c0"):
            self.register_parameter(
                name, nn.Parameter(torch.empty(hidden_channels, **options)) if learned_state else None
            )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform in ±1 / sqrt(what a unit reads), as ``nn.LSTM``; the forget gate starts open, with a bias of 1."""
        taps, gates, units = self.state_weight.shape
        conv = self.input_to_state
        assert conv.bias is not None
        for weight, inputs in ((self.state_weight, taps * units), (conv.weight, conv.live_taps().sum().item() / gates)):
            bound = 1 / math.sqrt(max(inputs, 1))
            nn.init.uniform_(weight, -bound, bound)
        nn.init.zeros_(conv.bias)
        conv.bias[gates // 4 : gates // 2] = 1
        for state in (self.h0, self.c0):
            if state is not None:
                nn.init.zeros_(state)

    @torch.no_grad()
    def load_conv1d_loop(
        self, input_weight: Tensor, input_bias: Tensor | None, state_weight: Tensor, state_bias: Tensor | None,
        gate_order: str, front: str,
    ) -> None:  # fmt: skip
        """Take over what :mod:`genkernels.ops.wavefront_lstm.converters` makes of a public layout."""
        weight, bias = input_from_conv2d(input_weight, input_bias, state_bias, gate_order=gate_order)
        conv = self.input_to_state
        for name, target, value in (
            ("input_weight", conv.weight, weight),
            ("input_bias", conv.bias, bias),
            ("state_weight", self.state_weight, state_from_conv1d(state_weight, front=front, gate_order=gate_order)),
        ):
            assert target is not None
            if value.shape != target.shape:
                raise ValueError(f"{name}: expected {list(target.shape)} in the end; got {list(value.shape)}")
            target.copy_(value)


def _check(in_channels: int, hidden_channels: int, mask_type: str, channel_groups: int) -> None:
    check_options(mask_type, channel_groups, "blocks", None)
    for name, channels in (("in_channels", in_channels), ("hidden_channels", hidden_channels)):
        if not isinstance(channels, int) or channels < channel_groups:
            raise ValueError(f"{name}: expected at least channel_groups = {channel_groups}; got {channels}")


class _Layer(nn.Module):
    """What both layers keep of their arguments."""

    def __init__(
        self, in_channels: int, hidden_channels: int, channel_groups: int, mask_type: str, checkpoint: bool
    ) -> None:
        _check(in_channels, hidden_channels, mask_type, channel_groups)
        super().__init__()
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels
        self.channel_groups = channel_groups
        self.mask_type = mask_type
        self.checkpoint = checkpoint

    def reset_parameters(self) -> None:
        """New random weights for each direction: uniform as in ``nn.LSTM``, the forget gates open."""
        for direction in self.children():
            assert isinstance(direction, _Recurrence)
            direction.reset_parameters()

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.hidden_channels}, mask_type={self.mask_type!r}"
        if self.channel_groups != 1:
            text += f", channel_groups={self.channel_groups}"
        return f"{text}, checkpoint=True" if self.checkpoint else text


class RowLSTM(_Layer):
    """Row LSTM layer: a 1x3 masked convolution to the gates, then the sweep from the top row to the bottom row.

    Args:
        in_channels: channels of the input.
        hidden_channels: channels of the result, h.
        channel_groups: colour groups that order the channels inside a pixel, in blocks: channel c of n is in group
            ``c * channel_groups // n``. Unit j of a group sees the input groups up to its own; the state of earlier
            rows it sees whole.
        mask_type: "B" shows the pixel itself to its unit, "A" hides it.
        learned_state: learn the state above the image (h0, c0), which is zero otherwise.
        checkpoint: see :func:`genkernels.ops.row_lstm_layer`.

    Shape: [N, in_channels, H, W] or [in_channels, H, W] -> the same with ``hidden_channels``. float64, float32,
    bfloat16, float16; contiguous and channels_last inputs give an output of their own layout.

    The ``state_dict`` holds ``walk.input_to_state.weight`` [4h, in, 1, 3] and ``.bias`` [4h], ``walk.state_weight``
    [3, 4h, h] (above left, above, above right) and, where learned, ``walk.h0`` and ``walk.c0`` [h]. The gates are in
    the order i, f, g, o.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        *,
        channel_groups: int = 1,
        mask_type: str = "B",
        learned_state: bool = False,
        checkpoint: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_channels, hidden_channels, channel_groups, mask_type, checkpoint)
        self.walk = _Recurrence(
            in_channels, hidden_channels, (1, 3), len(ROW_TAPS), mask_type, channel_groups, learned_state, device, dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        own = self.walk
        weight, mask_type = own.input_to_state.live_weight()
        return ops.row_lstm_layer(
            x,
            weight,
            own.input_to_state.bias,
            own.state_weight,
            own.h0,
            own.c0,
            mask_type=mask_type,
            checkpoint=self.checkpoint,
        )

    @classmethod
    def from_conv1d_loop(
        cls,
        input_weight: Tensor,
        input_bias: Tensor | None,
        state_weight: Tensor,
        state_bias: Tensor | None = None,
        *,
        gate_order: str = "ifgo",
        **options: Any,
    ) -> RowLSTM:
        """The layer that computes what a public one computes, which loops over rows with a ``Conv1d(h, 4h, 3)``.

        Args:
            input_weight: of its input-to-state ``Conv2d(in, 4h, (1, 3))`` or ``Conv1d(in, 4h, 3)``, [4h, in, 1, 3]
                or [4h, in, 3]; masked taps are ignored.
            input_bias: [4h] or None.
            state_weight: of its ``Conv1d(h, 4h, 3, padding=1)``, [4h, h, 3].
            state_bias: [4h] or None.
            gate_order: its order of the gates in 4h, "ofig" say; g is the one with the tanh.
            options: of the constructor, beyond the numbers of channels.

        Raises:
            ValueError: a shape or the gate order does not fit; the message names it.
        """
        weight = input_weight.unsqueeze(2) if input_weight.dim() == 3 else input_weight
        layer = cls(weight.shape[1], state_weight.shape[1], **options)
        layer.walk.load_conv1d_loop(weight, input_bias, state_weight, state_bias, gate_order, "row")
        return layer


class DiagonalBiLSTM(_Layer):
    """Diagonal BiLSTM layer: for each of two directions a 1x1 masked convolution to the gates and a sweep over the
    anti-diagonals; the result of the sweep from the right is moved down one row and added to the other.

    A pixel sees itself, all pixels before it, and no others.

    Args:
        in_channels, hidden_channels, channel_groups, checkpoint: as for :class:`RowLSTM`.
        learned_state: learn the state outside the image (h0, c0) of each direction, which is zero otherwise.

    Shape: [N, in_channels, H, W] or [in_channels, H, W] -> the same with ``hidden_channels``. float64, float32,
    bfloat16, float16; contiguous and channels_last inputs give an output of their own layout.

    The ``state_dict`` holds, for each direction, ``left`` and ``right``: ``input_to_state.weight`` [4h, in, 1, 1] and
    ``.bias`` [4h], ``state_weight`` [2, 4h, h] (the pixel beside, the pixel above) and, where learned, ``h0`` and
    ``c0`` [h]. The gates are in the order i, f, g, o.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.2.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        *,
        channel_groups: int = 1,
        learned_state: bool = False,
        checkpoint: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_channels, hidden_channels, channel_groups, "B", checkpoint)

        def direction() -> _Recurrence:
            return _Recurrence(
                in_channels, hidden_channels, (1, 1), len(DIAGONAL_TAPS), "B", channel_groups, learned_state,
                device, dtype,
            )  # fmt: skip

        self.left, self.right = direction(), direction()

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left, self.right
        left_weight, mask_type = left.input_to_state.live_weight()
        right_weight, _ = right.input_to_state.live_weight()
        return ops.diagonal_bilstm_layer(
            x,
            left_weight,
            right_weight,
            left.input_to_state.bias,
            right.input_to_state.bias,
            left.state_weight,
            right.state_weight,
            left.h0,
            left.c0,
            right.h0,
            right.c0,
            mask_type=mask_type,
            checkpoint=self.checkpoint,
        )

    @classmethod
    def from_conv1d_loop(
        cls,
        input_weight: tuple[Tensor, Tensor],
        input_bias: tuple[Tensor | None, Tensor | None],
        state_weight: tuple[Tensor, Tensor],
        state_bias: tuple[Tensor | None, Tensor | None] = (None, None),
        *,
        gate_order: str = "ifgo",
        **options: Any,
    ) -> DiagonalBiLSTM:
        """The layer that computes what a public one computes, which skews the map and loops over its columns.

        Each argument is a pair: for the direction from the left, and for the one from the right, whose map is flipped
        before it is skewed. Versions in which both share their weights give the same tensor twice. A public loop
        whose state part has a bias, or which skews before its input-to-state part, computes a state in the empty
        corners of the skewed map too, and reads it at the edges of the image; here the state there is zero.

        Args:
            input_weight: of the input-to-state ``Conv2d(in, 4h, 1)``, [4h, in, 1, 1]; masked taps are ignored.
            input_bias: [4h] or None.
            state_weight: of the ``Conv1d(h, 4h, 2)`` over rows, padded on top, [4h, h, 2]: index 0 is the row above.
            state_bias: [4h] or None.
            gate_order: the order of the gates in 4h, "ofig" say; g is the one with the tanh.
            options: of the constructor, beyond the numbers of channels.

        Raises:
            ValueError: a shape or the gate order does not fit; the message names it.
        """
        layer = cls(input_weight[0].shape[1], state_weight[0].shape[1], **options)
        for k, direction in enumerate((layer.left, layer.right)):
            direction.load_conv1d_loop(
                input_weight[k], input_bias[k], state_weight[k], state_bias[k], gate_order, "diagonal"
            )
        return layer
