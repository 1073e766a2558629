"""Gated PixelCNN: two stacks of gated convolutions, no blind spot, and classes to condition on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..nn import GatedMaskedConv2d, MaskedConv2d
from ..nn.gated_masked_conv import GATE_POWER
from ..nn.init import init_live_taps
from .autoregressive import AutoregressiveModel, as_size, channels_last, check_whole


class GatedPixelCNN(AutoregressiveModel):
    """Gated PixelCNN: a mask-A layer and ``num_layers`` mask-B layers of two stacks, then 1x1 mask B to the logits.

    The layers are :class:`genkernels.nn.GatedMaskedConv2d`. The horizontal stack of the last one goes through ReLU
    and two times 1x1 + ReLU of ``head_channels``, then 1x1 to the logits. The colours are the channel groups of every
    layer, so ``hidden_channels`` need not divide by them.

    There is no blind spot: with r = ``first_kernel_size // 2 + num_layers * (kernel_size // 2)``, a pixel sees all
    pixels before it up to r columns beside it and r + 1 rows above it.

    Args:
        in_channels: 1 for grey images, 3 for R, G, B.
        hidden_channels: features of each stack, h; at least ``in_channels``.
        num_layers: mask-B layers.
        levels: values that a sub-pixel takes, 2 to 256.
        num_classes: classes of images that the model is conditioned on; None for none. With classes, ``condition`` is
            the int64 label [N] of each image: its embedding biases both halves of every gate.
        condition_channels: instead of classes, ``condition`` is a vector of this length for each image, or a map of
            such vectors over it: [N, condition_channels] or [N, condition_channels, H, W].
        kernel_size: of the mask-B layers, odd.
        first_kernel_size: of the mask-A layer, odd, at least 3: a 1 would never see the own row.
        head_channels: width of the two 1x1 layers before the logits.
        distribution: "categorical", or "logistic_mixture" for a
            :class:`~genkernels.distributions.DiscretizedLogisticMixture` over the colours of a pixel: then all layers
            have one channel group, and pixels see only those before them.
        mixtures: components of the latter, K.
        image_size: height and width of sampled images, one number for squares.

    Shape: [N, in_channels, H, W] levels, any real dtype -> logits [N, levels, in_channels, H, W]; or the
        parameters of a mixture, [N, K * (1 + 2 C + C (C - 1) / 2), H, W] with C = in_channels.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", sections 2.1 to 2.3.
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_channels: int = 64,
        num_layers: int = 8,
        levels: int = 256,
        *,
        num_classes: int | None = None,
        condition_channels: int | None = None,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        head_channels: int = 64,
        distribution: str = "categorical",
        mixtures: int = 10,
        image_size: int | Sequence[int] = (28, 28),
    ) -> None:
        super().__init__(in_channels, levels, image_size, num_classes, distribution, mixtures)
        groups = self.distribution.predictions
        check_whole("hidden_channels", hidden_channels, in_channels)
        check_whole("num_layers", num_layers, 0)
        check_whole("head_channels", head_channels, in_channels)
        if condition_channels is not None:
            check_whole("condition_channels", condition_channels, 1)
            if num_classes is not None:
                raise ValueError(f"condition_channels: expected None beside num_classes; got {condition_channels}")
        for name, size, least in (("kernel_size", kernel_size, 1), ("first_kernel_size", first_kernel_size, 3)):
            check_whole(name, size, least)
            if size % 2 == 0:
                raise ValueError(f"{name}: expected an odd number, so that there is a centre tap; got {size}")
        self.config = {
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
            "levels": levels,
            "num_classes": num_classes,
            "condition_channels": condition_channels,
            "kernel_size": kernel_size,
            "first_kernel_size": first_kernel_size,
            "head_channels": head_channels,
            "distribution": distribution,
            "mixtures": mixtures,
            "image_size": list(as_size("image_size", image_size)),
        }
        self.classes = None if num_classes is None else nn.Embedding(num_classes, hidden_channels)

        def layer(inputs: int, kernel: int, mask_type: str) -> GatedMaskedConv2d:
            return GatedMaskedConv2d(
                inputs, hidden_channels, kernel,
                mask_type=mask_type, channel_groups=groups,
                condition_channels=condition_channels if num_classes is None else hidden_channels,
            )  # fmt: skip

        def conv(inputs: int, outputs: int, relu: bool = True) -> MaskedConv2d:
            return MaskedConv2d(
                inputs, outputs, 1,
                mask_type="B", channel_groups=groups, activation="relu" if relu else None,
            )  # fmt: skip

        layers = [layer(in_channels, first_kernel_size, "A")]
        layers += [layer(hidden_channels, kernel_size, "B") for _ in range(num_layers)]
        head = [
            conv(hidden_channels, head_channels),
            conv(head_channels, head_channels),
            conv(head_channels, groups * self.distribution.channels, relu=False),
        ]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Sequential(nn.ReLU(), *head)
        # Features are kept channels_last, as in PixelCNN.
        layers[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._initialise()

    def _initialise(self) -> None:
        layers, head = cast(Any, self.layers), cast(Any, self.head)
        for later in layers[1:]:
            # the sum over all layers keeps its size
            init_live_taps(later.out, variance=1 / (GATE_POWER * self.config["num_layers"]))
        for last in head[1:]:
            init_live_taps(last, variance=1.0 if last.activation is None else 2.0)

    def check_condition(self, condition: Tensor | None, batch: int) -> None:
        channels = self.config["condition_channels"]
        if channels is None:
            super().check_condition(condition, batch)
            return
        wanted = f"floating-point [{batch}, {channels}] or [{batch}, {channels}, H, W]"
        if not isinstance(condition, Tensor):
            raise ValueError(f"condition: expected {wanted}; got {condition!r}")
        if (
            condition.dim() not in (2, 4)
            or condition.shape[:2] != (batch, channels)
            or not condition.is_floating_point()
        ):
            raise ValueError(f"condition: expected {wanted}; got {condition.dtype} {list(condition.shape)}")

    def last_layer(self) -> MaskedConv2d:
        return cast(MaskedConv2d, self.head[-1])

    def features(self, scaled: Tensor, condition: Tensor | None) -> Tensor:
        vertical = horizontal = channels_last(scaled)
        if self.classes is not None:
            condition = self.classes(condition)  # [N, h]
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, condition)
        for layer in list(self.head)[:-1]:
            horizontal = layer(horizontal)
        return horizontal
