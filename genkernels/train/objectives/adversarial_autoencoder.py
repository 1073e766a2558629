"""Adversarial autoencoders: the squared error of the reconstruction, and codes pushed to the prior."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...models import AdversarialAutoencoder
from ...models.adversarial_autoencoder import distance_to_standard_normal
from ..data.batches import Batch, LabelledImages
from ..data.sources import as_picture
from ..metrics import Measure, figures_over, mean_of
from ..optimization import Descent
from ..settings import Settings
from .adversarial import frozen
from .adversarial_losses import discriminator_loss, generator_loss
from .autoencoder import scaled
from .base import Drawing, Evaluating, Objective, descent_of, refuse


@dataclass(frozen=True)
class AdversarialAutoencoderObjective(Objective[AdversarialAutoencoder]):
    """Two phases for each batch: the reconstruction; then the discriminator, and the encoder against it.

    Source: Makhzani et al. 2016, "Adversarial Autoencoders", section 2.
    """

    curves: ClassVar = {"train_error": "training", "test_error": "test"}
    unit = "squared error per sub-pixel"

    def descents(self, model: AdversarialAutoencoder, settings: Settings) -> dict[str, Descent]:
        return {
            "reconstruction": descent_of([*model.encoder.parameters(), *model.decoder.parameters()], settings),
            "discriminator": descent_of(model.discriminator.parameters(), settings),
            "encoder": descent_of(model.encoder.parameters(), settings),
        }

    def step(self, model: AdversarialAutoencoder, batch: Batch, descents: Mapping[str, Descent]) -> dict[str, float]:
        def errors() -> Iterator[Tensor]:
            for part, share in batch.parts():
                yield model.reconstruction_error(scaled(part.images)).mean() * share

        def judgements() -> Iterator[Tensor]:
            for part, share in batch.parts():
                with torch.no_grad():
                    codes = model.encode(scaled(part.images))
                drawn = part.drawn(lambda n: torch.randn(n, model.latent_dim)).to(codes)
                yield discriminator_loss(model.discriminator(drawn), model.discriminator(codes)) * share

        def deceptions() -> Iterator[Tensor]:
            for part, share in batch.parts():
                yield generator_loss(model.discriminator(model.encode(scaled(part.images)))) * share

        error, norm = descents["reconstruction"].step(errors())
        judged = descents["discriminator"].step(judgements(), "discriminator's loss")
        with frozen(model.discriminator.parameters()):
            deceived = descents["encoder"].step(deceptions(), "encoder's loss")
        return {
            "train_error": error,
            "grad_norm": norm,
            "discriminator_loss": judged.loss,
            "encoder_loss": deceived.loss,
        }

    def evaluate(self, model: AdversarialAutoencoder, test: LabelledImages, how: Evaluating) -> list[Measure]:
        refuse("importance_samples", how.importance_samples, "an adversarial autoencoder")

        def score(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
            real = scaled(x)
            codes = model.encode(real)
            return (model.decode(codes) - real).square().flatten(1).mean(1), codes

        errors, codes = figures_over(model, test, score, how.batch_size, how.progress)
        distance = distance_to_standard_normal(codes.float())
        return [
            Measure("error", self.unit, *mean_of(errors)),
            Measure("code_distance", "Fréchet distance of the codes to the prior", distance, float("nan"), len(codes)),
        ]

    def sample(self, model: AdversarialAutoencoder, n: int, how: Drawing) -> Tensor:
        refuse("temperature", how.temperature, "an adversarial autoencoder")
        refuse("label", how.label, "an adversarial autoencoder")
        return as_picture(model.sample(n, generator=how.generator))

    def pictures(
        self, model: AdversarialAutoencoder, test: LabelledImages, n: int, how: Drawing
    ) -> dict[str, dict[str, Tensor]]:
        device = next(model.parameters()).device
        reconstructed = as_picture(model.reconstruct(scaled(test.images[:n]).to(device)))
        return {
            "samples": {"samples": self.sample(model, n, how), "real": test.images[:n]},
            "reconstructions": {"real": test.images[:n], "reconstructed": reconstructed},
        }
