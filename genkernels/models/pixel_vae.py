"""PixelVAE: a variational autoencoder whose decoder is a shallow gated PixelCNN conditioned on the code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import evaluation_mode
from .gated_pixelcnn import GatedPixelCNN
from .variational import VariationalModel


class PixelVAE(VariationalModel):
    """p(x) = E p(x given z) over z from N(0, 1), with all of a pixel's past in p(x given z).

    The decoder's transposed convolutions turn the code into a map of ``hidden_channels`` features over the image, which
    conditions every gate of a :class:`GatedPixelCNN` at its place. What neighbours tell about a pixel the PixelCNN
    knows; the code is left with what is global, and the bound gets tighter. (To keep the decoder from doing without the
    code, training can let the weight of the divergence rise from 0, and leave some of it free of cost: see
    :class:`genkernels.train.objectives.VariationalObjective`.)

    Args:
        in_channels: colours of an image.
        hidden_channels: features of the layer next to the image, on both sides; each layer further in has twice as
            many.
        latent_dim: numbers in a code z.
        levels: values that a sub-pixel takes, 2 to 256.
        pixelcnn_channels: features of each stack of the PixelCNN.
        num_layers: mask-B layers of the PixelCNN. Few: what it sees is local.
        first_kernel_size: of its mask-A layer, odd, at least 3.
        beta: weight of the divergence while training; 1 is the bound.
        num_classes: classes of images that both halves are conditioned on; None for none.
        image_size: height and width, or one number for squares: sides that halving brings down to 4 .. 7.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: Gulrajani et al. 2017, "PixelVAE: A Latent Variable Model for Natural Images", section 3.1; a condition that
        is a map: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", section 2.3.
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_channels: int = 32,
        latent_dim: int = 32,
        levels: int = 2,
        *,
        pixelcnn_channels: int = 32,
        num_layers: int = 2,
        first_kernel_size: int = 5,
        beta: float = 1.0,
        num_classes: int | None = None,
        image_size: int | Sequence[int] = 28,
    ) -> None:
        super().__init__(
            in_channels, hidden_channels, latent_dim, levels, beta, num_classes, image_size,
            decoded_channels=hidden_channels, decoded_activation="relu",
        )  # fmt: skip
        self.config |= {
            "pixelcnn_channels": pixelcnn_channels,
            "num_layers": num_layers,
            "first_kernel_size": first_kernel_size,
        }
        self.pixelcnn = GatedPixelCNN(
            in_channels, pixelcnn_channels, num_layers, levels,
            condition_channels=hidden_channels, first_kernel_size=first_kernel_size,
            head_channels=pixelcnn_channels, image_size=image_size,
        )  # fmt: skip

    def log_likelihood(self, x: Tensor, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """log p(x given z) in nats: levels [N, C, H, W], codes [N, latent_dim] -> [N], float32 or wider."""
        return self.pixelcnn.log_prob(x, self._decoded(z, condition))

    def expected_images(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """An image drawn from p(x given z) for each code, in evaluation mode: [N, latent_dim] -> [N, C, H, W].

        Instead of the mean, which would be a sum over all images; with the same uniforms at every call.
        """
        return self._images_of(z, condition, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def _images_of(self, z: Tensor, condition: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Drawn by the fast sampler, with the decoded code as its condition."""
        with evaluation_mode(self):
            levels = self.pixelcnn.sample(len(z), condition=self._decoded(z, condition), generator=generator)
        return self._scaled(levels)
