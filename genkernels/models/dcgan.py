"""DCGAN: a convolutional generator and a convolutional discriminator that train against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .adversarial import AdversarialModel, check_discriminator, with_head, with_spectral_norm
from .autoregressive import check_whole
from .conv_stacks import ConvolutionalModel, down, halvings, up

NEGATIVE_SLOPE = 0.2
INITIAL_SPREAD = 0.02


@torch.no_grad()
def init_dcgan(module: nn.Module) -> None:
    """Weights from N(0, 0.02), gains of batch normalisation from N(1, 0.02), biases 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            normalised = is_parametrized(layer, "weight")  # then the weight itself stands behind its norm
            weight = cast(Any, layer).parametrizations.weight.original if normalised else layer.weight
            nn.init.normal_(weight, 0.0, INITIAL_SPREAD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, INITIAL_SPREAD)
            nn.init.zeros_(layer.bias)


class DCGAN(AdversarialModel, ConvolutionalModel):
    """A generator of images in [-1, 1] from latents, and a discriminator that gives the logit of an image being real.

    64 x 64 with the defaults: latents of 100 -> 512 -> 256 -> 128 -> 64 -> colours, 4x4 kernels, the first layer
    without stride, the others with stride 2; the discriminator mirrors it. Batch normalisation everywhere except at
    the generator's output and the discriminator's input; no biases but those of batch normalisation; ReLU and tanh in
    the generator, LeakyReLU(0.2) in the discriminator. Every halving of the size takes a layer away: at 28 and 32
    the features are 128 -> 64 and 256 -> 128 -> 64.

    Args:
        in_channels: colours of an image.
        hidden_channels: features of the layer next to the image; each layer further in has twice as many.
        latent_dim: numbers in a latent, each uniform in [-1, 1].
        num_classes: classes of images; None for none.
        discriminator_norm: "batch", or "none": a gradient penalty is of one image, whose gradient batch normalisation
            makes depend on the others.
        minibatch_kernels: of minibatch discrimination in front of the last layer; 0 for none.
        spectral_norm: normalise the weights of the discriminator by their largest singular value.
        image_size: height and width, or one number for squares: sides that halving brings down to 4 .. 7.

    Shape and attributes: see :class:`~genkernels.models.adversarial.AdversarialModel`.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: Radford, Metz, Chintala 2016, "Unsupervised Representation Learning with Deep Convolutional Generative
        Adversarial Networks", sections 3 and 4.
    """

    def __init__(
        self,
        in_channels: int = 3,
        hidden_channels: int = 64,
        latent_dim: int = 100,
        *,
        num_classes: int | None = None,
        discriminator_norm: str = "batch",
        minibatch_kernels: int = 0,
        spectral_norm: bool = False,
        image_size: int | Sequence[int] = 64,
    ) -> None:
        super().__init__(in_channels, hidden_channels, latent_dim, image_size)
        check_discriminator(discriminator_norm, minibatch_kernels, num_classes)
        self.num_classes = num_classes
        self.config |= {
            "num_classes": num_classes,
            "discriminator_norm": discriminator_norm,
            "minibatch_kernels": minibatch_kernels,
            "spectral_norm": spectral_norm,
        }
        classes = num_classes or 0
        self.generator = nn.Sequential(
            nn.Unflatten(1, (latent_dim + classes, 1, 1)),
            *up(latent_dim + classes, hidden_channels, in_channels, image_size, last_activation="tanh", bias=False),
        )
        *body, last = down(
            in_channels + classes, hidden_channels, 1, image_size,
            activation="leaky_relu", negative_slope=NEGATIVE_SLOPE, first_batch_norm=False, bias=False,
            batch_norm=discriminator_norm == "batch",
        )  # fmt: skip
        if minibatch_kernels:
            count, base = halvings(image_size)
            features = (hidden_channels << (count - 1)) * math.prod(base)
            self.discriminator = with_head([*body, nn.Flatten(1)], features, minibatch_kernels, spectral_norm)
        else:
            network = nn.Sequential(*body, last, nn.Flatten(0))
            self.discriminator = with_spectral_norm(network) if spectral_norm else network
        self._initialise()

    def _initialise(self) -> None:
        init_dcgan(self)

    def draw_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents [n, latent_dim] uniform in [-1, 1], drawn on the CPU, on the device and in the dtype of the model."""
        check_whole("n", n, 1)
        uniforms = torch.rand(n, self.latent_dim, generator=generator)  # on the CPU: a seed means the same everywhere
        return (2 * uniforms - 1).to(next(self.parameters()))
