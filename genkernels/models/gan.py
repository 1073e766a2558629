"""GAN of multilayer perceptrons, on images or on points of the plane."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .adversarial import AdversarialModel, check_discriminator, linear_layers, with_head
from .autoregressive import as_size, check_whole


class GAN(AdversarialModel):
    """Multilayer perceptrons: a generator with ReLU, a discriminator with LeakyReLU(0.2), both of one width.

    Args:
        in_channels: colours of an image, or the coordinates of a point.
        hidden_channels: width of the hidden layers.
        num_layers: hidden layers of each network.
        latent_dim: numbers in a latent, each from N(0, 1).
        bounded: end the generator in tanh, for images in [-1, 1]; points have no bounds.
        num_classes: classes of images; None for none.
        minibatch_kernels: of minibatch discrimination in front of the last layer; 0 for none.
        spectral_norm: normalise the weights of the discriminator by their largest singular value.
        image_size: height and width, one number for squares; 1 for points.

    Shape and attributes: see :class:`~genkernels.models.adversarial.AdversarialModel`.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: Goodfellow et al. 2014, "Generative Adversarial Nets".
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_channels: int = 256,
        num_layers: int = 2,
        latent_dim: int = 64,
        *,
        bounded: bool = True,
        num_classes: int | None = None,
        minibatch_kernels: int = 0,
        spectral_norm: bool = False,
        image_size: int | Sequence[int] = 28,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels), ("hidden_channels", hidden_channels), ("num_layers", num_layers),
            ("latent_dim", latent_dim),
        ):  # fmt: skip
            check_whole(name, value, 1)
        check_discriminator("none", minibatch_kernels, num_classes)
        self.in_channels, self.latent_dim, self.num_classes = in_channels, latent_dim, num_classes
        self.image_size = as_size("image_size", image_size)
        self.config = {
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
            "latent_dim": latent_dim,
            "bounded": bounded,
            "num_classes": num_classes,
            "minibatch_kernels": minibatch_kernels,
            "spectral_norm": spectral_norm,
            "image_size": list(self.image_size),
        }
        classes, shape = num_classes or 0, (in_channels, *self.image_size)
        hidden = [hidden_channels] * num_layers
        self.generator = nn.Sequential(
            *linear_layers([latent_dim + classes, *hidden], nn.ReLU()),
            nn.Linear(hidden_channels, math.prod(shape)),
            *([nn.Tanh()] if bounded else []),
            nn.Unflatten(1, shape),
        )
        inputs = (in_channels + classes) * math.prod(self.image_size)
        body = [nn.Flatten(1), *linear_layers([inputs, *hidden], nn.LeakyReLU(0.2))]
        self.discriminator = with_head(body, hidden_channels, minibatch_kernels, spectral_norm)

    def draw_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents [n, latent_dim] from N(0, 1), drawn on the CPU, on the device and in the dtype of the model."""
        check_whole("n", n, 1)
        return torch.randn(n, self.latent_dim, generator=generator).to(next(self.parameters()))
