"""PixelRNN: a recurrence over the whole image, so that every pixel can depend on all pixels before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import DiagonalBiLSTM, MaskedConv2d, RowLSTM
from ..nn.init import init_live_taps
from .autoregressive import AutoregressiveModel, as_size, channels_last, check_whole, run_with_classes

RECURRENCES = {"row": RowLSTM, "diagonal": DiagonalBiLSTM}


class RecurrentBlock(nn.Module):
    """2h features -> an LSTM layer to h, 1x1 mask B up to 2h, plus the input. [N, 2h, H, W] -> same.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.3, figure 5
        (right).
    """

    def __init__(
        self, hidden_channels: int, recurrence: str, channel_groups: int, learned_state: bool, checkpoint: bool
    ) -> None:
        super().__init__()
        wide = 2 * hidden_channels
        self.lstm = RECURRENCES[recurrence](
            wide, hidden_channels, channel_groups=channel_groups, learned_state=learned_state, checkpoint=checkpoint
        )
        self.up = MaskedConv2d(hidden_channels, wide, 1, mask_type="B", channel_groups=channel_groups)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.lstm(x))


class PixelRNN(AutoregressiveModel):
    """PixelRNN: a 7x7 mask-A layer, ``num_layers`` residual LSTM blocks, and 1x1 mask-B layers to the logits.

    The features between the blocks are ``2 * hidden_channels`` wide. After the last block come two times ReLU and 1x1
    mask B of ``head_channels``, then ReLU and 1x1 to the logits. The colours are the channel groups of every layer,
    so ``hidden_channels`` need not divide by them.

    With the diagonal recurrence a pixel sees every pixel before it, already after one block; with the row recurrence
    it sees a triangle above it, whose sides the taps set.

    One thing the paper leaves open: behind a mask-A layer no feature of a row depends on the row's last pixel, so the
    direction from the right, which hands each row to the next, would never pass that pixel on. The diagonal model
    therefore works on the image with one more column of zeros, whose features do depend on it, and drops that column's
    logits.

    Args:
        in_channels: 1 for grey images, 3 for R, G, B.
        hidden_channels: units of each LSTM, h; at least ``in_channels``.
        num_layers: LSTM blocks.
        levels: values that a sub-pixel takes, 2 to 256.
        recurrence: "diagonal" (:class:`genkernels.nn.DiagonalBiLSTM`) or "row" (:class:`genkernels.nn.RowLSTM`).
        first_kernel_size: of the mask-A layer, odd.
        head_channels: width of the two 1x1 layers before the logits.
        learned_state: learn the LSTMs' states outside the image.
        checkpoint: train in less memory and more time; see :func:`genkernels.ops.row_lstm_layer`.
        num_classes: classes of images that the model is conditioned on; None for none. With classes, ``condition`` is
            the int64 label [N] of each image: its embedding is added to the features of the first layer.
        distribution: "categorical", or "logistic_mixture" for a
            :class:`~genkernels.distributions.DiscretizedLogisticMixture` over the colours of a pixel: then all layers
            have one channel group, and pixels see only those before them.
        mixtures: components of the latter, K.
        image_size: height and width of sampled images, one number for squares.

    Shape: [N, in_channels, H, W] levels, any real dtype -> logits [N, levels, in_channels, H, W]; or the
        parameters of a mixture, [N, K * (1 + 2 C + C (C - 1) / 2), H, W] with C = in_channels.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", sections 3.1 to 3.3 and
        table 1. Its MNIST model is the default: diagonal, 7 layers, h = 16, binarised images.
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_channels: int = 16,
        num_layers: int = 7,
        levels: int = 2,
        *,
        recurrence: str = "diagonal",
        first_kernel_size: int = 7,
        head_channels: int = 32,
        learned_state: bool = True,
        checkpoint: bool = False,
        num_classes: int | None = None,
        distribution: str = "categorical",
        mixtures: int = 10,
        image_size: int | Sequence[int] = (28, 28),
    ) -> None:
        super().__init__(in_channels, levels, image_size, num_classes, distribution, mixtures)
        groups = self.distribution.predictions
        check_whole("hidden_channels", hidden_channels, in_channels)
        check_whole("num_layers", num_layers, 0)
        check_whole("head_channels", head_channels, in_channels)
        check_whole("first_kernel_size", first_kernel_size, 1)
        if first_kernel_size % 2 == 0:
            raise ValueError(f"first_kernel_size: expected an odd number; got {first_kernel_size}")
        if recurrence not in RECURRENCES:
            raise ValueError(f"recurrence: expected 'row' or 'diagonal'; got {recurrence!r}")
        self.config = {
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
            "levels": levels,
            "recurrence": recurrence,
            "first_kernel_size": first_kernel_size,
            "head_channels": head_channels,
            "learned_state": learned_state,
            "checkpoint": checkpoint,
            "num_classes": num_classes,
            "distribution": distribution,
            "mixtures": mixtures,
            "image_size": list(as_size("image_size", image_size)),
        }

        def conv(inputs: int, outputs: int, kernel: int = 1, mask_type: str = "B", relu: bool = True) -> MaskedConv2d:
            return MaskedConv2d(
                inputs, outputs, kernel,
                mask_type=mask_type, channel_groups=groups, activation="relu" if relu else None,
            )  # fmt: skip

        wide = 2 * hidden_channels
        blocks = [
            RecurrentBlock(hidden_channels, recurrence, groups, learned_state, checkpoint) for _ in range(num_layers)
        ]
        self.layers = nn.Sequential(
            conv(in_channels, wide, first_kernel_size, "A", relu=False),
            *blocks,
            nn.ReLU(),
            conv(wide, head_channels),
            conv(head_channels, head_channels),
            conv(head_channels, groups * self.distribution.channels, relu=False),
        )
        self.classes = None if num_classes is None else nn.Embedding(num_classes, wide)
        # Features are kept channels_last, as in PixelCNN.
        self.layers[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.layers:
            if isinstance(layer, MaskedConv2d):
                init_live_taps(layer, variance=1.0 if layer.activation is None else 2.0)
            elif isinstance(layer, RecurrentBlock):
                # the sum over all blocks keeps its size
                init_live_taps(layer.up, variance=1 / self.config["num_layers"])

    def last_layer(self) -> MaskedConv2d:
        return cast(MaskedConv2d, self.layers[-1])

    def features(self, scaled: Tensor, condition: Tensor | None) -> Tensor:
        width = scaled.shape[3]
        wider = F.pad(scaled, (0, 1)) if self.config["recurrence"] == "diagonal" else scaled
        return run_with_classes(list(self.layers)[:-1], channels_last(wider), self.classes, condition)[..., :width]
