"""Adversarial training: a generator and a discriminator, an optimiser for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...models import DCGAN
from ...models.dcgan import discriminator_loss, generator_loss
from ..data.batches import Batch, LabelledImages
from ..data.sources import as_picture
from ..metrics import Measure
from ..optimization import Descent
from ..settings import Settings
from .base import Drawing, Evaluating, Objective, descent_of, refuse

BETAS = (0.5, 0.999)  # Radford et al. 2016, section 4: with the usual 0.9 training oscillates


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, gradients pass through the module and none is computed for its parameters."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def adversarial_step(
    generator: nn.Module,
    discriminator: nn.Module,
    real: Tensor,
    latents: Tensor,
    generator_descent: Descent,
    discriminator_descent: Descent,
) -> dict[str, float]:
    """One step of the discriminator, then one of the generator against the discriminator just improved.

    The real and the generated images pass through the discriminator as batches of their own, so that batch
    normalisation does not mix their statistics. The images of both steps are the same.

    Args:
        generator: latents -> images.
        discriminator: images -> logits of being real.
        real: images scaled as the generator's.
        latents: one for each image to generate.
        generator_descent, discriminator_descent: each holds its own network's parameters alone.

    Returns:
        "discriminator_loss", "generator_loss"; "real_score" and "fake_score", the mean probabilities of being real
        that the discriminator gave before its step.

    Raises:
        NotFiniteError: a loss or gradient is not finite; the network that it belongs to is as it was.
    """
    fake = generator(latents)
    real_logits, fake_logits = discriminator(real), discriminator(fake.detach())
    judged = discriminator_descent.step([discriminator_loss(real_logits, fake_logits)], "discriminator's loss")
    with frozen(discriminator):
        deceived = generator_descent.step([generator_loss(discriminator(fake))], "generator's loss")
    return {
        "discriminator_loss": judged.loss,
        "generator_loss": deceived.loss,
        "real_score": real_logits.detach().sigmoid().mean().item(),
        "fake_score": fake_logits.detach().sigmoid().mean().item(),
    }


@dataclass(frozen=True)
class AdversarialObjective(Objective[DCGAN]):
    """The non-saturating game, on images scaled to [-1, 1]."""

    curves: ClassVar = {"discriminator_loss": "discriminator", "generator_loss": "generator"}
    unit = "loss"
    unmeasured = "a GAN gives images no likelihood, so test images give no figure; look at: genkernels sample"

    def descents(self, model: DCGAN, settings: Settings) -> dict[str, Descent]:
        options: dict[str, Any] = {"betas": BETAS} if settings.optimizer in ("adam", "adamw") else {}
        rate = settings.discriminator_learning_rate or settings.learning_rate
        return {
            "generator": descent_of(model.generator.parameters(), settings, **options),
            "discriminator": descent_of(model.discriminator.parameters(), settings, lr=rate, **options),
        }

    def step(self, model: DCGAN, batch: Batch, descents: Mapping[str, Descent]) -> dict[str, float]:
        real = batch.images.float() / 127.5 - 1
        latents = model.draw_latents(len(batch))
        return adversarial_step(
            model.generator, model.discriminator, real, latents, descents["generator"], descents["discriminator"]
        )

    def evaluate(self, model: DCGAN, test: LabelledImages, how: Evaluating) -> list[Measure]:
        return []

    def sample(self, model: DCGAN, n: int, how: Drawing) -> Tensor:
        refuse("temperature", how.temperature, "a GAN")
        refuse("label", how.label, "a GAN")
        return as_picture((model.sample(n, generator=how.generator) + 1) / 2)

    def pictures(self, model: DCGAN, test: LabelledImages, n: int, how: Drawing) -> dict[str, dict[str, Tensor]]:
        return {"samples": {"samples": self.sample(model, n, how), "real": test.images[:n]}}
