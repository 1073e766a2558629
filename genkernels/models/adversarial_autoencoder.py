"""Adversarial autoencoder: an autoencoder whose codes a discriminator pushes to the prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .autoencoder import Autoencoder
from .autoregressive import check_whole
from .base import evaluation_mode


class AdversarialAutoencoder(Autoencoder):
    """An :class:`Autoencoder` with a discriminator that tells its codes from draws of N(0, 1).

    The encoder is trained against the discriminator, so that the codes of all images together come to be distributed
    as the prior; the decoder then makes an image of every draw from it.

    Args:
        in_channels: colours of an image.
        hidden_channels: features of the layer next to the image; each layer further in has twice as many.
        latent_dim: numbers in a code.
        discriminator_units: width of the discriminator's two hidden layers.
        image_size: height and width, or one number for squares: sides that halving brings down to 4 .. 7.

    Attributes:
        encoder: images [N, in_channels, H, W] in [0, 1] -> codes [N, latent_dim].
        decoder: codes -> images.
        discriminator: codes -> logits [N] of being drawn from the prior.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: Makhzani et al. 2016, "Adversarial Autoencoders", section 2 and appendix A.1.
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_channels: int = 32,
        latent_dim: int = 8,
        *,
        discriminator_units: int = 1000,
        image_size: int | Sequence[int] = 28,
    ) -> None:
        super().__init__(in_channels, hidden_channels, latent_dim, image_size=image_size)
        check_whole("discriminator_units", discriminator_units, 1)
        self.config |= {"discriminator_units": discriminator_units}
        self.discriminator = nn.Sequential(
            nn.Linear(latent_dim, discriminator_units),
            nn.ReLU(),
            nn.Linear(discriminator_units, discriminator_units),
            nn.ReLU(),
            nn.Linear(discriminator_units, 1),
            nn.Flatten(0),
        )

    @torch.no_grad()
    def sample(self, n: int, *, latents: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Images of codes from the prior, in evaluation mode.

        Args:
            n: how many.
            latents: [n, latent_dim]; None draws them from N(0, 1) on the CPU, from ``generator`` or torch's own.
            generator: for the latents, when they are not given.

        Returns:
            [n, in_channels, H, W] in [0, 1].

        Raises:
            ValueError: an argument does not fit; the message names it.
        """
        check_whole("n", n, 1)
        if latents is None:
            latents = torch.randn(n, self.latent_dim, generator=generator)
        if latents.shape != (n, self.latent_dim):
            raise ValueError(f"latents: expected [{n}, {self.latent_dim}]; got shape {list(latents.shape)}")
        with evaluation_mode(self):
            return self.decode(latents.to(next(self.parameters())))


def distance_to_standard_normal(codes: Tensor) -> float:
    """Fréchet distance of the Gaussian with the mean and covariance of codes [N, D] to N(0, 1).

    It is ``|mean|² + sum (1 - sqrt(eigenvalue of the covariance))²``, and 0 for a perfect match of both moments.

    Source: Dowson & Landau 1982, "The Fréchet distance between multivariate normal distributions".
    """
    codes = codes.double()
    spreads = torch.linalg.eigvalsh(codes.T.cov().reshape(codes.shape[1], -1)).clamp_min(0).sqrt()
    return float(codes.mean(0).square().sum() + (1 - spreads).square().sum())
