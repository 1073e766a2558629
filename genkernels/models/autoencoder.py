"""Autoencoder: an image down to a code and up again, and a classifier that starts from its encoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .autoregressive import check_whole
from .base import evaluation_mode
from .conv_stacks import ConvolutionalModel, down, up


class Autoencoder(ConvolutionalModel):
    """Convolutions down to a code, transposed convolutions up to the image, trained on the squared error.

    Layers as in :mod:`genkernels.models.conv_stacks`, with batch normalisation and ReLU; the code has neither, the
    image ends in a sigmoid.

    Args:
        in_channels: colours of an image.
        hidden_channels: features of the layer next to the image; each layer further in has twice as many.
        latent_dim: numbers in a code.
        image_size: height and width, or one number for squares: sides that halving brings down to 4 .. 7.

    Shape: [N, in_channels, H, W] in [0, 1] -> the same.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: Hinton & Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks"; the convolutions
        are those of Radford, Metz, Chintala 2016.
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_channels: int = 32,
        latent_dim: int = 32,
        *,
        image_size: int | Sequence[int] = 28,
    ) -> None:
        super().__init__(in_channels, hidden_channels, latent_dim, image_size)
        self.encoder = nn.Sequential(*down(in_channels, hidden_channels, latent_dim, image_size), nn.Flatten(1))
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (latent_dim, 1, 1)),
            *up(latent_dim, hidden_channels, in_channels, image_size, last_activation="sigmoid"),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Codes of images: [N, in_channels, H, W] in [0, 1] -> [N, latent_dim].

        Raises:
            ValueError: the shape does not fit.
        """
        self.check_images(x)
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Images of codes: [N, latent_dim] -> [N, in_channels, H, W] in [0, 1]."""
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def reconstruction_error(self, x: Tensor) -> Tensor:
        """Mean squared error of each image over its sub-pixels: [N, in_channels, H, W] in [0, 1] -> [N]."""
        return (self(x) - x).square().flatten(1).mean(1)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The model's output in evaluation mode: [N, in_channels, H, W] in [0, 1] -> the same."""
        with evaluation_mode(self):
            return self(x)

    def classifier(self, num_classes: int) -> nn.Sequential:
        """A classifier that starts from a copy of this encoder, for where labels are few.

        Its last layer is new; all of it can be trained, and this model stays as it is.

        Args:
            num_classes: at least 2.

        Returns:
            A module: images [N, in_channels, H, W] in [0, 1] -> logits [N, num_classes].

        Raises:
            ValueError: ``num_classes`` does not fit.
        """
        check_whole("num_classes", num_classes, 2)
        head = nn.Linear(self.latent_dim, num_classes).to(next(self.parameters()))
        return nn.Sequential(copy.deepcopy(self.encoder), head)
