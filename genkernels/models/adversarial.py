"""Base class of adversarial families: a generator, a discriminator, classes, and the parts that stabilise them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..nn import MinibatchDiscrimination
from .autoregressive import check_whole, one_hot_labels
from .base import GenerativeModel, evaluation_mode

DISCRIMINATOR_NORMS = ("batch", "none")


class AdversarialModel(GenerativeModel):
    """Base class: a subclass makes ``generator`` and ``discriminator``, the last with :func:`with_head`.

    With classes, the one-hot label of an image stands beside the latent at the generator, and as one more channel for
    each class beside the image at the discriminator (Mirza & Osindero 2014, "Conditional Generative Adversarial Nets").

    Attributes:
        generator: latents [N, latent_dim + num_classes] -> images [N, in_channels, H, W].
        discriminator: images [N, in_channels + num_classes, H, W] -> logits [N] of being real.
        latent_dim: numbers in a latent.
        num_classes: classes of images; None for none.
    """

    generator: nn.Sequential
    discriminator: nn.Sequential
    latent_dim: int
    num_classes: int | None

    def draw_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Latents [n, latent_dim] from the prior, drawn on the CPU, on the device and in the dtype of the model."""
        raise NotImplementedError

    def generate(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images of latents [N, latent_dim] and, where there are classes, int64 labels [N]."""
        classes = one_hot_labels(condition, self.num_classes, latents)
        return self.generator(latents if classes is None else torch.cat([latents, classes], 1))

    def judge(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits [N] of images [N, in_channels, H, W] being real, given their labels [N] where there are classes."""
        return self.discriminator(self._labelled(images, condition))

    def judge_with_features(self, images: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The logits, and the features that they are computed of, [N, F]."""
        features = self.discriminator[:-2](self._labelled(images, condition))
        return self.discriminator[-2:](features), features.flatten(1)

    def _labelled(self, images: Tensor, condition: Tensor | None) -> Tensor:
        classes = one_hot_labels(condition, self.num_classes, images)
        if classes is None:
            return images
        return torch.cat([images, classes[:, :, None, None].expand(-1, -1, *images.shape[2:])], 1)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        *,
        latents: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images from the generator in evaluation mode, so that they do not depend on each other.

        Args:
            n: how many.
            condition: int64 labels [n] where the model has classes, else None.
            latents: [n, latent_dim]; None draws them, see :meth:`draw_latents`.
            generator: for the latents, when they are not given; None for torch's own.

        Returns:
            [n, in_channels, H, W] as the generator makes them.

        Raises:
            ValueError: an argument does not fit; the message names it.
        """
        check_whole("n", n, 1)
        if latents is None:
            latents = self.draw_latents(n, generator)
        if list(latents.shape) != [n, self.latent_dim]:
            raise ValueError(f"latents: expected [{n}, {self.latent_dim}]; got shape {list(latents.shape)}")
        with evaluation_mode(self):
            return self.generate(latents.to(next(self.parameters())), condition)


def check_discriminator(norm: str, minibatch_kernels: int, num_classes: int | None) -> None:
    """Raise a ValueError that names the option that does not fit."""
    if norm not in DISCRIMINATOR_NORMS:
        raise ValueError(f"discriminator_norm: expected 'batch' or 'none'; got {norm!r}")
    check_whole("minibatch_kernels", minibatch_kernels, 0)
    if num_classes is not None:
        check_whole("num_classes", num_classes, 1)


def with_head(body: list[nn.Module], features: int, minibatch_kernels: int, spectral: bool) -> nn.Sequential:
    """A discriminator: its body to [N, features], minibatch discrimination where wanted, one logit.

    Args:
        body: from images to features [N, features].
        features: how many.
        minibatch_kernels: of :class:`genkernels.nn.MinibatchDiscrimination`, averaged; 0 for none.
        spectral: normalise the weight of every layer by its largest singular value (Miyato et al. 2018, "Spectral
            Normalization for Generative Adversarial Networks").
    """
    more = [MinibatchDiscrimination(features, minibatch_kernels, average=True)] if minibatch_kernels else []
    network = nn.Sequential(*body, *more, nn.Linear(features + minibatch_kernels, 1), nn.Flatten(0))
    return with_spectral_norm(network) if spectral else network


def with_spectral_norm(network: nn.Sequential) -> nn.Sequential:
    """The network, the weight of each of its convolutions and linear layers parametrised by its spectral norm."""
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            spectral_norm(layer)
    return network


def without_batch_norm(network: nn.Module) -> bool:
    return not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)) for m in network.modules())


def linear_layers(sizes: list[int], activation: nn.Module) -> list[nn.Module]:
    """Linear layers from size to size, each with the activation behind it."""
    return [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), activation)]
