"""Base class of variational autoencoders: the encoder, the bounds, and images of codes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .autoregressive import check_levels, check_whole, one_hot_labels
from .base import evaluation_mode
from .conv_stacks import ConvolutionalModel, down, up


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of each number, in nats: any shape -> the same.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


class VariationalModel(ConvolutionalModel):
    """p(x) = E p(x given z) over z from N(0, 1), with an encoder q(z given x) = N(mean(x), variance(x)).

    Both halves are convolutions with batch normalisation and ReLU, see :mod:`genkernels.models.conv_stacks`: so in
    training mode an image's figures depend on its batch, in evaluation mode they do not. Images are levels
    0 .. levels - 1 in any real dtype, scaled to [0, 1] inside. A subclass defines p(x given z): :meth:`log_likelihood`
    and :meth:`expected_images`.

    Args:
        in_channels: colours of an image.
        hidden_channels: features of the layer next to the image; each layer further in has twice as many.
        latent_dim: numbers in a code z.
        levels: values that a sub-pixel takes, 2 to 256.
        beta: weight of the divergence while training; 1 is the bound (Higgins et al. 2017, "beta-VAE").
        num_classes: classes of images that both halves are conditioned on; None for none. With classes, ``condition``
            below is the int64 label [N] of each image: one more channel for each class at the encoder, one more number
            beside the code at the decoder, 1 for the image's own class and 0 for the others (Sohn et al. 2015,
            "Learning Structured Output Representation using Deep Conditional Generative Models").
        image_size: height and width, or one number for squares: sides that halving brings down to 4 .. 7.
        decoded_channels: of the map that the decoder makes of a code.
        decoded_activation: of its last layer.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes".
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        latent_dim: int,
        levels: int,
        beta: float,
        num_classes: int | None,
        image_size: int | Sequence[int],
        *,
        decoded_channels: int,
        decoded_activation: str | None = None,
    ) -> None:
        super().__init__(in_channels, hidden_channels, latent_dim, image_size)
        check_whole("levels", levels, 2, 256)
        if not beta >= 0:
            raise ValueError(f"beta: expected a number of at least 0; got {beta!r}")
        if num_classes is not None:
            check_whole("num_classes", num_classes, 1)
        self.levels, self.beta, self.num_classes = levels, beta, num_classes
        self.config |= {"levels": levels, "beta": beta, "num_classes": num_classes}
        classes = num_classes or 0
        code = latent_dim + classes
        self.encoder = nn.Sequential(
            *down(in_channels + classes, hidden_channels, 2 * latent_dim, image_size), nn.Flatten(1)
        )
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (code, 1, 1)),
            *up(code, hidden_channels, decoded_channels, image_size, last_activation=decoded_activation),
        )

    # --- the two halves ---------------------------------------------------------------------------------

    def encode(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of q(z given x): levels [N, C, H, W] -> two times [N, latent_dim].

        Raises:
            ValueError: the shape or the condition does not fit, or a value is not a level (not looked for inside
                ``torch.compile``).
        """
        self.check_images(x)
        check_levels("x", x, self.levels)
        seen = self._scaled(x)
        if (classes := one_hot_labels(condition, self.num_classes, seen)) is not None:
            seen = torch.cat([seen, classes[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)
        mean, log_variance = self.encoder(seen).chunk(2, 1)
        return mean, log_variance

    def _decoded(self, z: Tensor, condition: Tensor | None) -> Tensor:
        classes = one_hot_labels(condition, self.num_classes, z)
        return self.decoder(z if classes is None else torch.cat([z, classes], 1))

    def log_likelihood(self, x: Tensor, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """log p(x given z) in nats: levels [N, C, H, W], codes [N, latent_dim] -> [N], float32 or wider."""
        raise NotImplementedError

    # --- the bounds -------------------------------------------------------------------------------------

    def elbo_terms(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """log p(x given z) for one z from q, [N], and KL(q(z given x) || p(z)) of each number, [N, latent_dim]: nats.

        Arguments as in :meth:`elbo`.
        """
        mean, log_variance = self.encode(x, condition)
        noise = self._noise((len(x), self.latent_dim), noise, generator, mean)
        z = mean + (0.5 * log_variance).exp() * noise
        return self.log_likelihood(x, z, condition), kl_to_standard_normal(mean, log_variance)

    def elbo(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One-sample estimate of the evidence lower bound of each image, in nats: [N, C, H, W] -> [N].

        Args:
            x: levels.
            condition: int64 labels [N] where the model has classes, else None.
            noise: standard normal, [N, latent_dim]; None draws it on the CPU, from ``generator`` or torch's own.
            generator: for the noise, when it is not given.

        Raises:
            ValueError: an argument does not fit; the message names it.

        Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", equations 7 and 10.
        """
        reconstruction, divergence = self.elbo_terms(x, condition, noise=noise, generator=generator)
        return reconstruction - divergence.sum(1)

    forward = elbo

    def iwae(
        self,
        x: Tensor,
        k: int,
        condition: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Importance-weighted bound from k codes for each image, in nats: [N, C, H, W] -> [N].

        log of the mean of k weights p(x, z) / q(z given x). It lies between the evidence lower bound and log p(x), and
        rises with k. Its gradient is the sum of the gradients of the log-weights, each times its normalised weight
        taken as a constant: which is what logsumexp's derivative is.

        Args:
            x: levels.
            k: codes for each image, at least 1.
            condition: int64 labels [N] where the model has classes, else None.
            noise: standard normal, [k, N, latent_dim]; None draws it on the CPU, from ``generator`` or torch's own.
            generator: for the noise, when it is not given.

        Raises:
            ValueError: an argument does not fit; the message names it.

        Source: Burda, Grosse, Salakhutdinov 2016, "Importance Weighted Autoencoders", equations 8 and 14.
        """
        check_whole("k", k, 1)
        mean, log_variance = self.encode(x, condition)
        noise = self._noise((k, len(x), self.latent_dim), noise, generator, mean)
        z = mean + (0.5 * log_variance).exp() * noise  # [k, N, latent_dim]
        repeated = x.expand(k, *x.shape).flatten(0, 1)
        labels = None if condition is None else condition.repeat(k)
        reconstruction = self.log_likelihood(repeated, z.flatten(0, 1), labels).view(k, len(x))
        prior_over_posterior = 0.5 * (noise.square() - z.square() + log_variance).sum(-1)
        return torch.logsumexp(reconstruction + prior_over_posterior, 0) - math.log(k)

    # --- images -----------------------------------------------------------------------------------------

    def expected_images(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images of codes, in evaluation mode: [N, latent_dim] -> [N, C, H, W] in [0, 1]."""
        raise NotImplementedError

    @torch.no_grad()
    def reconstruct(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The expected image of the mean of q(z given x): levels [N, C, H, W] -> the same shape in [0, 1]."""
        with evaluation_mode(self):
            mean, _ = self.encode(x, condition)
        return self.expected_images(mean, condition)

    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        *,
        latents: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images of codes from the prior: expected ones, or ones that the decoder draws.

        Args:
            n: how many.
            condition: int64 labels [n] where the model has classes, else None.
            latents: [n, latent_dim]; None draws them from N(0, 1) on the CPU, from ``generator`` or torch's own.
            generator: for the latents, when they are not given, and for what the decoder draws.

        Returns:
            [n, in_channels, H, W] in [0, 1].

        Raises:
            ValueError: an argument does not fit; the message names it.
        """
        check_whole("n", n, 1)
        like = next(self.parameters())
        latents = self._noise((n, self.latent_dim), latents, generator, like, "latents")
        return self._images_of(latents, condition, generator)

    def _images_of(self, z: Tensor, condition: Tensor | None, generator: torch.Generator | None) -> Tensor:
        return self.expected_images(z, condition)

    def latent_grid(self, side: int) -> Tensor:
        """Expected images over the plane of codes, side x side of them row by row: [side², C, H, W] in [0, 1].

        The codes are the quantiles (i + 1/2) / side of the prior; the first number changes down the rows.

        Raises:
            ValueError: ``latent_dim`` is not 2, the model has classes, or ``side`` is no positive whole number.

        Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", figure 4.
        """
        check_whole("side", side, 1)
        if self.latent_dim != 2:
            raise ValueError(f"latent_grid: expected a model with latent_dim 2; got {self.latent_dim}")
        if self.num_classes is not None:
            raise ValueError(f"latent_grid: expected a model without classes; got one with {self.num_classes}")
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
