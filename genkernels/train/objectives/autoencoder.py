"""Autoencoders: the squared error of the reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ...models import Autoencoder
from ..data.sources import as_picture
from ..errors import GenkernelsError
from ..metrics import Measure, mean_over
from .base import Objective, Progress, descend, refuse


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 255


class ReconstructionObjective(Objective[Autoencoder]):
    """Minimises the mean squared error of images in [0, 1]."""

    curves: ClassVar = {"train_error": "training", "test_error": "test"}
    unit = "squared error per sub-pixel"

    def step(
        self,
        model: Autoencoder,
        images: Tensor,
        optimizers: Mapping[str, torch.optim.Optimizer],
        clip: float,
        labels: Tensor | None = None,
    ) -> dict[str, float]:
        error = model.reconstruction_error(_scaled(images)).mean()
        norm = descend(optimizers["model"], error, clip)
        return {"train_error": error.item(), "grad_norm": norm}

    def evaluate(
        self,
        model: Autoencoder,
        images: Tensor,
        batch_size: int = 64,
        progress: Progress | None = None,
        importance_samples: int | None = None,
        labels: Tensor | None = None,
    ) -> list[Measure]:
        refuse("importance_samples", importance_samples, "an autoencoder")

        def score(x: Tensor) -> tuple[Tensor]:
            return (model.reconstruction_error(_scaled(x)),)

        (error,) = mean_over(model, images, score, batch_size, progress)
        return [Measure("error", self.unit, *error)]

    def sample(
        self,
        model: Autoencoder,
        n: int,
        generator: torch.Generator,
        progress: Progress | None = None,
        temperature: float | None = None,
        label: int | None = None,
    ) -> Tensor:
        raise GenkernelsError("an autoencoder has no distribution of codes to draw images from; train a vae for that")

    def pictures(
        self, model: Autoencoder, images: Tensor, n: int, generator: torch.Generator, progress: Progress | None = None
    ) -> dict[str, dict[str, Tensor]]:
        device = next(model.parameters()).device
        reconstructed = model.reconstruct(_scaled(images[:n]).to(device))
        return {"reconstructions": {"real": images[:n], "reconstructed": as_picture(reconstructed)}}
