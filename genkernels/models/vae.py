"""Variational autoencoder: an encoder and a decoder that maximise a bound of the likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autoregressive import check_levels, check_whole, log_likelihood
from .base import evaluation_mode
from .conv_stacks import ConvolutionalModel, down, up

LIKELIHOODS = ("bernoulli", "categorical", "gaussian")
LOG_TWO_PI = math.log(2 * math.pi)


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats, summed over the last dimension: [..., D] -> [...].

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


class VAE(ConvolutionalModel):
    """p(x) = E p(x given z) over z from N(0, 1), with an encoder q(z given x) = N(mean(x), variance(x)).

    Both halves are convolutions with batch normalisation and ReLU, see :mod:`genkernels.models.conv_stacks`: so in
    training mode an image's figures depend on its batch, in evaluation mode they do not. Images are levels
    0 .. levels - 1 in any real dtype, scaled to [0, 1] inside.

    Args:
        in_channels: colours of an image.
        hidden_channels: features of the layer next to the image; each layer further in has twice as many.
        latent_dim: numbers in a code z.
        levels: values that a sub-pixel takes, 2 to 256; 2 where the likelihood is "bernoulli".
        likelihood: of a sub-pixel given z. "bernoulli": one probability, for binarised images. "categorical": one
            for each level. "gaussian": a mean in [0, 1] and one learned spread for all; the nats are those of a
            density of images scaled to [0, 1], and so not comparable with the others.
        beta: weight of the divergence while training; 1 is the bound (Higgins et al. 2017, "beta-VAE").
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
        image_size: int | Sequence[int] = 28,
    ) -> None:
        super().__init__(in_channels, hidden_channels, latent_dim, image_size)
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood: expected one of {', '.join(map(repr, LIKELIHOODS))}; got {likelihood!r}")
        check_whole("levels", levels, 2, 256)
        if likelihood == "bernoulli" and levels != 2:
            raise ValueError(f"levels: a Bernoulli likelihood takes 2; got {levels}")
        if not beta >= 0:
            raise ValueError(f"beta: expected a number of at least 0; got {beta!r}")
        self.levels, self.likelihood, self.beta = levels, likelihood, beta
        self.config |= {"levels": levels, "likelihood": likelihood, "beta": beta}
        self.encoder = nn.Sequential(*down(in_channels, hidden_channels, 2 * latent_dim, image_size), nn.Flatten(1))
        outputs = in_channels * levels if likelihood == "categorical" else in_channels
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (latent_dim, 1, 1)), *up(latent_dim, hidden_channels, outputs, image_size)
        )
        if likelihood == "gaussian":
            self.log_spread = nn.Parameter(torch.empty(()))
        self._initialise()

    def _initialise(self) -> None:
        if self.likelihood == "gaussian":
            nn.init.constant_(self.log_spread, -1.0)

    # --- the two halves ---------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of q(z given x): levels [N, C, H, W] -> two times [N, latent_dim].

        Raises:
            ValueError: the shape does not fit, or a value is not a level (not looked for inside ``torch.compile``).
        """
        self.check_images(x)
        check_levels("x", x, self.levels)
        mean, log_variance = self.encoder(self._scaled(x)).chunk(2, 1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """The parameters of p(x given z) for codes [N, latent_dim].

        Returns:
            "bernoulli": logits [N, C, H, W]; "categorical": logits [N, levels, C, H, W]; "gaussian": means in
            [0, 1], [N, C, H, W].
        """
        decoded = self.decoder(z)
        if self.likelihood == "categorical":
            return decoded.unflatten(1, (self.in_channels, self.levels)).transpose(1, 2)
        return decoded if self.likelihood == "bernoulli" else decoded.sigmoid()

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x given z) in nats: levels [N, C, H, W], codes [N, latent_dim] -> [N], float32 or wider."""
        decoded = self.decode(z)
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

    # --- the bounds -------------------------------------------------------------------------------------

    def elbo_terms(
        self, x: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """log p(x given z) for one z from q, and KL(q(z given x) || p(z)), in nats, two times [N].

        Arguments as in :meth:`elbo`.
        """
        mean, log_variance = self.encode(x)
        noise = self._noise((len(x), self.latent_dim), noise, generator, mean)
        z = mean + (0.5 * log_variance).exp() * noise
        return self.log_likelihood(x, z), kl_to_standard_normal(mean, log_variance)

    def elbo(self, x: Tensor, *, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """One-sample estimate of the evidence lower bound of each image, in nats: [N, C, H, W] -> [N].

        Args:
            x: levels.
            noise: standard normal, [N, latent_dim]; None draws it on the CPU, from ``generator`` or torch's own.
            generator: for the noise, when it is not given.

        Raises:
            ValueError: an argument does not fit; the message names it.

        Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", equations 7 and 10.
        """
        reconstruction, divergence = self.elbo_terms(x, noise=noise, generator=generator)
        return reconstruction - divergence

    forward = elbo

    def iwae(
        self, x: Tensor, k: int, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Importance-weighted bound from k codes for each image, in nats: [N, C, H, W] -> [N].

        log of the mean of k weights p(x, z) / q(z given x). It lies between the evidence lower bound and log p(x), and
        rises with k. Its gradient is the sum of the gradients of the log-weights, each times its normalised weight
        taken as a constant: which is what logsumexp's derivative is.

        Args:
            x: levels.
            k: codes for each image, at least 1.
            noise: standard normal, [k, N, latent_dim]; None draws it on the CPU, from ``generator`` or torch's own.
            generator: for the noise, when it is not given.

        Raises:
            ValueError: an argument does not fit; the message names it.

        Source: Burda, Grosse, Salakhutdinov 2016, "Importance Weighted Autoencoders", equations 8 and 14.
        """
        check_whole("k", k, 1)
        mean, log_variance = self.encode(x)
        noise = self._noise((k, len(x), self.latent_dim), noise, generator, mean)
        z = mean + (0.5 * log_variance).exp() * noise  # [k, N, latent_dim]
        repeated = x.expand(k, *x.shape).flatten(0, 1)
        reconstruction = self.log_likelihood(repeated, z.flatten(0, 1)).view(k, len(x))
        prior_over_posterior = 0.5 * (noise.square() - z.square() + log_variance).sum(-1)
        return torch.logsumexp(reconstruction + prior_over_posterior, 0) - math.log(k)

    # --- images -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def expected_images(self, z: Tensor) -> Tensor:
        """The mean of p(x given z), in evaluation mode: codes [N, latent_dim] -> [N, C, H, W] in [0, 1]."""
        with evaluation_mode(self):
            decoded = self.decode(z)
        if self.likelihood == "bernoulli":
            return decoded.sigmoid()
        if self.likelihood == "gaussian":
            return decoded
        values = torch.linspace(0, 1, self.levels).to(decoded)
        return torch.einsum("nlchw,l->nchw", decoded.softmax(1), values)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The expected image of the mean of q(z given x): levels [N, C, H, W] -> the same shape in [0, 1]."""
        with evaluation_mode(self):
            mean, _ = self.encode(x)
        return self.expected_images(mean)

    def sample(self, n: int, *, latents: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Expected images of codes from the prior.

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
        like = next(self.parameters())
        return self.expected_images(self._noise((n, self.latent_dim), latents, generator, like, "latents"))

    def latent_grid(self, side: int) -> Tensor:
        """Expected images over the plane of codes, side x side of them row by row: [side², C, H, W] in [0, 1].

        The codes are the quantiles (i + 1/2) / side of the prior; the first number changes down the rows.

        Raises:
            ValueError: ``latent_dim`` is not 2, or ``side`` is no positive whole number.

        Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", figure 4.
        """
        check_whole("side", side, 1)
        if self.latent_dim != 2:
            raise ValueError(f"latent_grid: expected a model with latent_dim 2; got {self.latent_dim}")
        quantiles = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side)
        return self.expected_images(torch.cartesian_prod(quantiles, quantiles).to(next(self.parameters())))

    def _scaled(self, x: Tensor) -> Tensor:
        return x.to(next(self.parameters()).dtype) / (self.levels - 1)

    def _noise(
        self,
        shape: tuple[int, ...],
        given: Tensor | None,
        generator: torch.Generator | None,
        like: Tensor,
        name: str = "noise",
    ) -> Tensor:
        if given is None:
            return torch.randn(shape, generator=generator).to(like)  # on the CPU: a seed means the same everywhere
        if tuple(given.shape) != shape:
            raise ValueError(f"{name}: expected {list(shape)}; got shape {list(given.shape)}")
        return given.to(like)
