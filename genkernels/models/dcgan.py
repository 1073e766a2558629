"""DCGAN: a convolutional generator and a convolutional discriminator that train against each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autoregressive import check_whole
from .base import evaluation_mode
from .conv_stacks import ConvolutionalModel, down, up

NEGATIVE_SLOPE = 0.2
INITIAL_SPREAD = 0.02


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E log D(real) - E log(1 - D(fake)) from logits of any shape, as a scalar.

    Source: Goodfellow et al. 2014, "Generative Adversarial Nets", equation 1.
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """The non-saturating loss -E log D(fake) from logits of any shape, as a scalar.

    Its gradient stays large where the discriminator is sure, unlike that of E log(1 - D(fake)).

    Source: Goodfellow et al. 2014, "Generative Adversarial Nets", section 3.
    """
    return F.softplus(-fake_logits).mean()


@torch.no_grad()
def init_dcgan(module: nn.Module) -> None:
    """Weights of convolutions from N(0, 0.02), gains of batch normalisation from N(1, 0.02), biases 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, 0.0, INITIAL_SPREAD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, INITIAL_SPREAD)
            nn.init.zeros_(layer.bias)


class DCGAN(ConvolutionalModel):
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
        image_size: height and width, or one number for squares: sides that halving brings down to 4 .. 7.

    Attributes:
        generator: latents [N, latent_dim] -> images [N, in_channels, H, W] in [-1, 1].
        discriminator: images [N, in_channels, H, W] -> logits [N].

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
        image_size: int | Sequence[int] = 64,
    ) -> None:
        super().__init__(in_channels, hidden_channels, latent_dim, image_size)
        self.generator = nn.Sequential(
            nn.Unflatten(1, (latent_dim, 1, 1)),
            *up(latent_dim, hidden_channels, in_channels, image_size, last_activation="tanh", bias=False),
        )
        self.discriminator = nn.Sequential(
            *down(
                in_channels, hidden_channels, 1, image_size,
                activation="leaky_relu", negative_slope=NEGATIVE_SLOPE, first_batch_norm=False, bias=False,
            ),
            nn.Flatten(0),
        )  # fmt: skip
        self._initialise()

    def _initialise(self) -> None:
        init_dcgan(self)

    def draw_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents [n, latent_dim] uniform in [-1, 1], drawn on the CPU, on the device and in the dtype of the model."""
        check_whole("n", n, 1)
        uniforms = torch.rand(n, self.latent_dim, generator=generator)  # on the CPU: a seed means the same everywhere
        return (2 * uniforms - 1).to(next(self.parameters()))

    @torch.no_grad()
    def sample(self, n: int, *, latents: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Images from the generator in evaluation mode, so that they do not depend on each other.

        Args:
            n: how many.
            latents: [n, latent_dim]; None draws them, see :meth:`draw_latents`.
            generator: for the latents, when they are not given; None for torch's own.

        Returns:
            [n, in_channels, H, W] in [-1, 1].

        Raises:
            ValueError: an argument does not fit; the message names it.
        """
        if latents is None:
            latents = self.draw_latents(n, generator)
        if list(latents.shape) != [n, self.latent_dim]:
            raise ValueError(f"latents: expected [{n}, {self.latent_dim}]; got shape {list(latents.shape)}")
        with evaluation_mode(self):
            return self.generator(latents.to(next(self.parameters())))
