"""PixelCNN: masked convolutions from the image to the distribution of every sub-pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..nn import MaskedConv2d
from ..nn.init import init_live_taps
from .autoregressive import AutoregressiveModel, as_size, channels_last, check_whole, run_with_classes


class ResidualBlock(nn.Module):
    """2h features -> ReLU, 1x1 to h, ReLU, 3x3, ReLU, 1x1 to 2h, plus the input; all mask B. [N, 2h, H, W] ->
    same.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", figure 5 (left).
    """

    def __init__(self, hidden_channels: int, kernel_size: int, channel_groups: int) -> None:
        super().__init__()
        wide = 2 * hidden_channels
        self.down = MaskedConv2d(
            wide, hidden_channels, 1, mask_type="B", channel_groups=channel_groups, activation="relu"
        )
        self.conv = MaskedConv2d(
            hidden_channels, hidden_channels, kernel_size,
            mask_type="B", channel_groups=channel_groups, activation="relu",
        )  # fmt: skip
        self.up = MaskedConv2d(hidden_channels, wide, 1, mask_type="B", channel_groups=channel_groups)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.conv(self.down(torch.relu(x))))


class PixelCNN(AutoregressiveModel):
    """PixelCNN: a mask-A layer, ``num_layers`` mask-B layers, and 1x1 mask-B layers to the logits.

    Plain: ``first_kernel_size`` mask A + ReLU, ``num_layers`` x (``kernel_size`` mask B + ReLU), 1x1 to the
        logits.
    With ``residual`` the features are ``2 * hidden_channels`` wide and each of the ``num_layers`` is a
    :class:`ResidualBlock`. ``head_channels`` puts two 1x1 + ReLU layers of that width before the last one, as
    the paper has them. The colours are the channel groups of every layer, so ``hidden_channels`` need not
    divide by them.

    Its receptive field has a blind spot to the right of the pixel, above it: a stack of masked convolutions
    sees only a cone. On 9 x 9 images the default reaches 2,995 of the 3,240 pairs of a pixel and one before
    it.

    Args:
        in_channels: 1 for grey images, 3 for R, G, B.
        hidden_channels: features per layer, h; at least ``in_channels``.
        num_layers: mask-B layers, or residual blocks.
        levels: values that a sub-pixel takes, 2 to 256.
        kernel_size: of the mask-B layers, odd.
        first_kernel_size: of the mask-A layer, odd.
        residual: whether to use residual blocks.
        head_channels: width of two more 1x1 layers before the logits; None for none.
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

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", sections 3.4 and
        3.5.
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_channels: int = 64,
        num_layers: int = 7,
        levels: int = 256,
        *,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        residual: bool = False,
        head_channels: int | None = None,
        num_classes: int | None = None,
        distribution: str = "categorical",
        mixtures: int = 10,
        image_size: int | Sequence[int] = (28, 28),
    ) -> None:
        super().__init__(in_channels, levels, image_size, num_classes, distribution, mixtures)
        groups = self.distribution.predictions
        check_whole("hidden_channels", hidden_channels, in_channels)
        check_whole("num_layers", num_layers, 0)
        if head_channels is not None:
            check_whole("head_channels", head_channels, in_channels)
        for name, size in (("kernel_size", kernel_size), ("first_kernel_size", first_kernel_size)):
            check_whole(name, size, 1)
            if size % 2 == 0:
                raise ValueError(f"{name}: expected an odd number, so that there is a centre tap; got {size}")
        self.config = {
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
            "levels": levels,
            "kernel_size": kernel_size,
            "first_kernel_size": first_kernel_size,
            "residual": residual,
            "head_channels": head_channels,
            "num_classes": num_classes,
            "distribution": distribution,
            "mixtures": mixtures,
            "image_size": list(as_size("image_size", image_size)),
        }

        def conv(inputs: int, outputs: int, kernel: int, mask_type: str = "B", relu: bool = True) -> MaskedConv2d:
            return MaskedConv2d(
                inputs, outputs, kernel,
                mask_type=mask_type, channel_groups=groups, activation="relu" if relu else None,
            )  # fmt: skip

        width = 2 * hidden_channels if residual else hidden_channels
        layers: list[Any] = [conv(in_channels, width, first_kernel_size, "A", relu=not residual)]
        if residual:
            layers += [ResidualBlock(hidden_channels, kernel_size, groups) for _ in range(num_layers)]
            layers.append(nn.ReLU())  # of the sum, which no convolution ends
        else:
            layers += [conv(width, width, kernel_size) for _ in range(num_layers)]
        if head_channels is not None:
            layers += [conv(width, head_channels, 1), conv(head_channels, head_channels, 1)]
            width = head_channels
        layers.append(conv(width, groups * self.distribution.channels, 1, relu=False))
        self.layers = nn.Sequential(*layers)
        self.classes = None if num_classes is None else nn.Embedding(num_classes, layers[0].out_channels)
        # Features are kept channels_last (see `predict`). An image of one channel has no layout of its own: there
        # the first layer's weight says which is meant.
        self.layers[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, MaskedConv2d):
                init_live_taps(layer, variance=1.0 if layer.activation is None else 2.0)
        for layer in self.layers:
            if isinstance(layer, ResidualBlock):
                # the sum over all blocks keeps its size
                init_live_taps(layer.up, variance=1 / self.config["num_layers"])

    def last_layer(self) -> MaskedConv2d:
        return cast(MaskedConv2d, self.layers[-1])

    def features(self, scaled: Tensor, condition: Tensor | None) -> Tensor:
        # channels_last: results leave the kernels without a transposition, and the softmax reads its levels in a row.
        return run_with_classes(list(self.layers)[:-1], channels_last(scaled), self.classes, condition)
