"""Losses of the adversarial game, from logits of any shape, and the penalties on the discriminator's gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E log D(real) - E log(1 - D(fake)).

    Source: Goodfellow et al. 2014, "Generative Adversarial Nets", equation 1.
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """The non-saturating loss -E log D(fake).

    Its gradient stays large where the discriminator is sure, unlike that of E log(1 - D(fake)).

    Source: Goodfellow et al. 2014, "Generative Adversarial Nets", section 3.
    """
    return F.softplus(-fake_logits).mean()


def smoothed_discriminator_loss(real_logits: Tensor, fake_logits: Tensor, smoothing: float) -> Tensor:
    """As :func:`discriminator_loss`, with real images labelled 1 - smoothing.

    Source: Salimans et al. 2016, "Improved Techniques for Training GANs", section 3.4.
    """
    return discriminator_loss(real_logits, fake_logits) + smoothing * real_logits.mean()


class Losses(NamedTuple):
    """Those of both sides."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    """(logits of real images, of generated ones) -> scalar"""
    generator: Callable[[Tensor], Tensor]
    """(logits of generated images) -> scalar"""


LOSSES = {
    # Goodfellow et al. 2014: section 3, and equation 1
    "non-saturating": Losses(discriminator_loss, generator_loss),
    "minimax": Losses(discriminator_loss, lambda fake: -F.softplus(fake).mean()),
    # Lim & Ye 2017, "Geometric GAN"; Miyato et al. 2018, equations 16 and 17
    "hinge": Losses(lambda real, fake: (1 - real).relu().mean() + (1 + fake).relu().mean(), lambda fake: -fake.mean()),
    # Arjovsky, Chintala, Bottou 2017, "Wasserstein GAN", equation 2
    "wasserstein": Losses(lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean()),
    # Mao et al. 2017, "Least Squares Generative Adversarial Networks", equation 9
    "least-squares": Losses(
        lambda real, fake: 0.5 * ((real - 1).square().mean() + fake.square().mean()),
        lambda fake: 0.5 * (fake - 1).square().mean(),
    ),
}


def gradient_norms(judge: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The norm of the gradient of each image's logit by that image, [N], itself differentiable."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(judge(images).sum(), images, create_graph=True)
    return gradient.flatten(1).norm(dim=1)


def gradient_penalty(judge: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, places: Tensor) -> Tensor:
    """E (|gradient at a point between a real and a generated image| - 1)².

    ``places`` [N] are where: 0 at the generated image, 1 at the real one; the paper has uniform numbers.

    Source: Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", equation 3.
    """
    share = places.to(real).view(-1, *[1] * (real.dim() - 1))
    return (gradient_norms(judge, share * real + (1 - share) * fake) - 1).square().mean()


def r1_penalty(judge: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """E |gradient at a real image|² / 2.

    Source: Mescheder, Geiger, Nowozin 2018, "Which Training Methods for GANs do actually Converge?", equation 9.
    """
    return 0.5 * gradient_norms(judge, real).square().mean()
