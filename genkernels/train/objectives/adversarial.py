"""Adversarial training: a generator and a discriminator, an optimiser for each, and what keeps them stable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...models import AdversarialModel
from ...models.adversarial import without_batch_norm
from .. import processes
from ..data.batches import Batch, LabelledImages
from ..data.sources import Dataset, as_picture
from ..errors import GenkernelsError
from ..metrics import Measure
from ..optimization import Descent
from ..point_metrics import mode_measures
from ..settings import Settings
from .adversarial_losses import (
    LOSSES,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    r1_penalty,
    smoothed_discriminator_loss,
)
from .base import Drawing, Evaluating, Objective, classes_to_draw, descent_of, refuse

BETAS = (0.5, 0.999)  # Radford et al. 2016, section 4: with the usual 0.9 training oscillates
R1_INTERVAL = 16  # steps: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", section 3.1
POINTS = 10_000  # drawn to count the modes
POINTS_IN_PLOT = 1000  # at least


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, gradients pass by these parameters and none is computed for them."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def adversarial_step(
    generator: Callable[[Tensor], Tensor],
    discriminator: Callable[[Tensor], Tensor],
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
    with frozen(discriminator_descent.parameters):
        deceived = generator_descent.step([generator_loss(discriminator(fake))], "generator's loss")
    return {
        "discriminator_loss": judged.loss,
        "generator_loss": deceived.loss,
        "real_score": real_logits.detach().sigmoid().mean().item(),
        "fake_score": fake_logits.detach().sigmoid().mean().item(),
    }


@dataclass(frozen=True)
class AdversarialObjective(Objective[AdversarialModel]):
    """The adversarial game, on images scaled to [-1, 1] or on points; a step of it is :func:`adversarial_step`.

    The options go together, whatever the model: minibatch discrimination, spectral norm and classes are the model's.

    Attributes:
        loss: a name of ``LOSSES``.
        label_smoothing: real images count as so much less than 1; for "non-saturating" and "minimax".
        critic_steps: the generator takes a step after so many of the discriminator, each on a batch of its own.
        gradient_penalty: weight of the penalty of WGAN-GP; the paper has 10. The discriminator may have no batch
            normalisation.
        r1: weight of the penalty of real images' gradients; taken every 16th step, 16 times as heavy.
        feature_matching: weight of |E f(real) - E f(generated)|² in the generator's loss, f being the features that
            the discriminator's last layer sees (Salimans et al. 2016, section 3.1).
        historical_averaging: weight of |theta - mean of its past|² in both losses (the same, section 3.3).
    """

    loss: str = "non-saturating"
    label_smoothing: float = 0.0
    critic_steps: int = 1
    gradient_penalty: float = 0.0
    r1: float = 0.0
    feature_matching: float = 0.0
    historical_averaging: float = 0.0

    curves: ClassVar = {"discriminator_loss": "discriminator", "generator_loss": "generator"}
    unit = "loss"
    unmeasured = "a GAN gives images no likelihood, so test images give no figure; look at: genkernels sample"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss: expected one of {', '.join(LOSSES)}; got {self.loss!r}")
        for name in ("label_smoothing", "gradient_penalty", "r1", "feature_matching", "historical_averaging"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected a number of at least 0; got {getattr(self, name)!r}")
        if self.label_smoothing and (self.loss not in ("non-saturating", "minimax") or self.label_smoothing >= 0.5):
            raise ValueError(
                "label_smoothing: expected a number below 0.5 and the loss 'non-saturating' or 'minimax'; "
                f"got {self.label_smoothing} and {self.loss!r}"
            )
        if self.critic_steps < 1:
            raise ValueError(f"critic_steps: expected a whole number of at least 1; got {self.critic_steps}")

    def takes_labels(self, model: AdversarialModel) -> bool:
        return model.num_classes is not None

    def model_options(self, dataset: Dataset, given: Mapping[str, Any]) -> dict[str, Any]:
        return {} if dataset.mixture is None else {"bounded": False}

    def descents(self, model: AdversarialModel, settings: Settings) -> dict[str, Descent]:
        if self.gradient_penalty and not without_batch_norm(model.discriminator):
            raise GenkernelsError(
                "gradient_penalty: the discriminator has batch normalisation, which makes the gradient at one image "
                "depend on the others; build it with discriminator_norm 'none'"
            )
        options: dict[str, Any] = {"betas": BETAS} if settings.optimizer in ("adam", "adamw") else {}
        rate = settings.discriminator_learning_rate or settings.learning_rate
        history = self.historical_averaging
        return {
            "generator": descent_of(model.generator.parameters(), settings, history=history, **options),
            "discriminator": descent_of(
                model.discriminator.parameters(), settings, history=history, lr=rate, **options
            ),
        }

    def step(self, model: AdversarialModel, batch: Batch, descents: Mapping[str, Descent]) -> dict[str, float]:
        game = _Game(self, model, batch)
        judged = descents["discriminator"].step(game.judgements(), "discriminator's loss")
        real_score, fake_score = processes.total(game.real_score, game.fake_score)
        values = {"discriminator_loss": judged.loss, "real_score": real_score, "fake_score": fake_score}
        if (batch.step + 1) % self.critic_steps == 0:
            with frozen(descents["discriminator"].parameters):
                deceived = descents["generator"].step(game.deceptions(), "generator's loss")
            values["generator_loss"] = deceived.loss
        return values

    def evaluate(self, model: AdversarialModel, test: LabelledImages, how: Evaluating) -> list[Measure]:
        refuse("importance_samples", how.importance_samples, "a GAN")
        if test.mixture is None:
            return []
        points = self.sample(model, POINTS, Drawing(torch.Generator().manual_seed(0)))
        return mode_measures(points.flatten(1), test.mixture)

    def sample(self, model: AdversarialModel, n: int, how: Drawing) -> Tensor:
        refuse("temperature", how.temperature, "a GAN")
        condition = classes_to_draw(model, model.num_classes, n, how)
        drawn = model.sample(n, condition, generator=how.generator)
        return drawn.cpu() if model.image_size == (1, 1) else as_picture((drawn + 1) / 2)

    def pictures(
        self, model: AdversarialModel, test: LabelledImages, n: int, how: Drawing
    ) -> dict[str, dict[str, Tensor]]:
        if test.mixture is None:
            return {"samples": {"samples": self.sample(model, n, how), "real": test.images[:n]}}
        n = max(n, POINTS_IN_PLOT)
        modes = test.mixture.centres[:, :, None, None]
        return {"samples": {"real": test.images[:n], "samples": self.sample(model, n, how), "modes": modes}}


class _Game:
    """One batch: the losses of both sides, part by part."""

    def __init__(self, objective: AdversarialObjective, model: AdversarialModel, batch: Batch) -> None:
        self.objective, self.model, self.batch = objective, model, batch
        self.losses = LOSSES[objective.loss]
        self.parts = list(batch.parts())
        latents = model.draw_latents(len(batch)).split([part.whole for part, _ in self.parts])
        self.latents = [part.own(drawn) for (part, _), drawn in zip(self.parts, latents, strict=True)]
        # The only part's images serve both sides. Of many parts they are made twice: one graph at a time.
        self.fakes: list[Tensor] = []
        self.real_score = self.fake_score = 0.0

    def judgements(self) -> Iterator[Tensor]:
        """The discriminator's loss of each part."""
        objective, model = self.objective, self.model
        for (part, share), latents in zip(self.parts, self.latents, strict=True):
            real, labels = as_generated(part.images), part.labels
            with torch.set_grad_enabled(len(self.parts) == 1):
                fake = model.generate(latents, labels)
            if len(self.parts) == 1:
                self.fakes.append(fake)
            real_logits, fake_logits = model.judge(real, labels), model.judge(fake.detach(), labels)
            if objective.label_smoothing:
                loss = smoothed_discriminator_loss(real_logits, fake_logits, objective.label_smoothing)
            else:
                loss = self.losses.discriminator(real_logits, fake_logits)

            def judge(images: Tensor, labels: Tensor | None = labels) -> Tensor:
                return model.judge(images, labels)

            if objective.gradient_penalty:
                places = part.drawn(torch.rand)
                loss = loss + objective.gradient_penalty * gradient_penalty(judge, real, fake.detach(), places)
            if objective.r1 and self.batch.step % R1_INTERVAL == 0:
                loss = loss + objective.r1 * R1_INTERVAL * r1_penalty(judge, real)
            self.real_score += real_logits.detach().sigmoid().mean().item() * share
            self.fake_score += fake_logits.detach().sigmoid().mean().item() * share
            yield loss * share

    def deceptions(self) -> Iterator[Tensor]:
        """The generator's loss of each part."""
        weight, model = self.objective.feature_matching, self.model
        for index, (part, share) in enumerate(self.parts):
            fake = self.fakes[index] if self.fakes else model.generate(self.latents[index], part.labels)
            if not weight:
                yield self.losses.generator(model.judge(fake, part.labels)) * share
                continue
            logits, features = model.judge_with_features(fake, part.labels)
            with torch.no_grad():
                _, wanted = model.judge_with_features(as_generated(part.images), part.labels)
            distance = (part.mean(features) - part.mean(wanted)).square().sum()
            yield (self.losses.generator(logits) + weight * distance) * share


def as_generated(images: Tensor) -> Tensor:
    """uint8 0 .. 255 as real numbers in [-1, 1]; points as they are."""
    return images if images.is_floating_point() else images.float() / 127.5 - 1
