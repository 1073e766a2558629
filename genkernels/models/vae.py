"""Variational autoencoder whose sub-pixels are independent given the code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributions.categorical import log_likelihood
from .base import evaluation_mode
from .variational import VariationalModel

LIKELIHOODS = ("bernoulli", "categorical", "gaussian")
LOG_TWO_PI = math.log(2 * math.pi)


class VAE(VariationalModel):
    """Variational autoencoder with one distribution for each sub-pixel, independent given the code.

    Halves, bounds and pictures are those of :class:`~genkernels.models.variational.VariationalModel`.

    Args:
        in_channels: colours of an image.
        hidden_channels: features of the layer next to the image; each layer further in has twice as many.
        latent_dim: numbers in a code z.
        levels: values that a sub-pixel takes, 2 to 256; 2 where the likelihood is "bernoulli".
        likelihood: of a sub-pixel given z. "bernoulli": one probability, for binarised images. "categorical": one
            for each level. "gaussian": a mean in [0, 1] and one learned spread for all; the nats are those of a
            density of images scaled to [0, 1], and so not comparable with the others.
        beta: weight of the divergence while training; 1 is the bound.
        num_classes: classes of images that both halves are conditioned on; None for none.
        image_size: height and width, or one number for squares: sides that halving brings down to 4 .. 7.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes".
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_channels: int = 32,
        latent_dim: int = 32,
        levels: int = 2,
        *,
        likelihood: str = "bernoulli",
        beta: float = 1.0,
        num_classes: int | None = None,
        image_size: int | Sequence[int] = 28,
    ) -> None:
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood: expected one of {', '.join(map(repr, LIKELIHOODS))}; got {likelihood!r}")
        if likelihood == "bernoulli" and levels != 2:
            raise ValueError(f"levels: a Bernoulli likelihood takes 2; got {levels}")
        super().__init__(
            in_channels, hidden_channels, latent_dim, levels, beta, num_classes, image_size,
            decoded_channels=in_channels * levels if likelihood == "categorical" else in_channels,
        )  # fmt: skip
        self.likelihood = likelihood
        self.config |= {"likelihood": likelihood}
        if likelihood == "gaussian":
            self.log_spread = nn.Parameter(torch.empty(()))
        self._initialise()

    def _initialise(self) -> None:
        if self.likelihood == "gaussian":
            nn.init.constant_(self.log_spread, -1.0)

    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """The parameters of p(x given z) for codes [N, latent_dim].

        Returns:
            "bernoulli": logits [N, C, H, W]; "categorical": logits [N, levels, C, H, W]; "gaussian": means in
            [0, 1], [N, C, H, W].
        """
        decoded = self._decoded(z, condition)
        if self.likelihood == "categorical":
            return decoded.unflatten(1, (self.in_channels, self.levels)).transpose(1, 2)
        return decoded if self.likelihood == "bernoulli" else decoded.sigmoid()

    def log_likelihood(self, x: Tensor, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """log p(x given z) in nats: levels [N, C, H, W], codes [N, latent_dim] -> [N], float32 or wider."""
        decoded = self.decode(z, condition)
        if self.likelihood == "categorical":
            return log_likelihood(decoded, x)
        wide = decoded.float() if decoded.dtype in (torch.bfloat16, torch.float16) else decoded
        scaled = x.to(wide.dtype) / (self.levels - 1)
        if self.likelihood == "bernoulli":
            each = -F.binary_cross_entropy_with_logits(wide, scaled, reduction="none")
        else:
            log_spread = self.log_spread.to(wide.dtype)
            each = -0.5 * (((scaled - wide) * (-log_spread).exp()).square() + LOG_TWO_PI) - log_spread
        return each.flatten(1).sum(1)

    @torch.no_grad()
    def expected_images(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """The mean of p(x given z), in evaluation mode: codes [N, latent_dim] -> [N, C, H, W] in [0, 1]."""
        with evaluation_mode(self):
            decoded = self.decode(z, condition)
        if self.likelihood == "bernoulli":
            return decoded.sigmoid()
        if self.likelihood == "gaussian":
            return decoded
        values = torch.linspace(0, 1, self.levels).to(decoded)
        return torch.einsum("nlchw,l->nchw", decoded.softmax(1), values)
