"""Autoencoders: the squared error of the reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...models import Autoencoder
from ..data.batches import Batch, LabelledImages
from ..data.sources import as_picture
from ..errors import GenkernelsError
from ..metrics import Measure, mean_over
from ..optimization import Descent
from .base import Drawing, Evaluating, Objective, refuse


def scaled(images: Tensor) -> Tensor:
    """uint8 0 .. 255 to float32 0 .. 1."""
    return images.float() / 255


@dataclass(frozen=True)
class ReconstructionObjective(Objective[Autoencoder]):
    """Minimises the mean squared error of images in [0, 1]."""

    curves: ClassVar = {"train_error": "training", "test_error": "test"}
    unit = "squared error per sub-pixel"

    def step(self, model: Autoencoder, batch: Batch, descents: Mapping[str, Descent]) -> dict[str, float]:
        errors = (model.reconstruction_error(scaled(part.images)).mean() * share for part, share in batch.parts())
        error, norm = descents["model"].step(errors)
        return {"train_error": error, "grad_norm": norm}

    def evaluate(self, model: Autoencoder, test: LabelledImages, how: Evaluating) -> list[Measure]:
        refuse("importance_samples", how.importance_samples, "an autoencoder")

        def score(x: Tensor, *_: object) -> tuple[Tensor]:
            return (model.reconstruction_error(scaled(x)),)

        (error,) = mean_over(model, test, score, how.batch_size, how.progress)
        return [Measure("error", self.unit, *error)]

    def sample(self, model: Autoencoder, n: int, how: Drawing) -> Tensor:
        raise GenkernelsError("an autoencoder has no distribution of codes to draw images from; train a vae for that")

    def pictures(self, model: Autoencoder, test: LabelledImages, n: int, how: Drawing) -> dict[str, dict[str, Tensor]]:
        device = next(model.parameters()).device
        reconstructed = model.reconstruct(scaled(test.images[:n]).to(device))
        return {"reconstructions": {"real": test.images[:n], "reconstructed": as_picture(reconstructed)}}
