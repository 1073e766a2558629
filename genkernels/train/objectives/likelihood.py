"""Autoregressive models: the exact likelihood."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...models import AutoregressiveModel
from ..data.batches import Batch
from ..data.sources import Dataset, dequantise
from ..metrics import Measure, evaluate
from ..optimization import Descent
from .base import Objective, Progress, classes_to_draw, refuse


@dataclass(frozen=True)
class LikelihoodObjective(Objective[AutoregressiveModel]):
    """Minimises the negative log-likelihood; the gradient that is clipped is that of nats per sub-pixel."""

    curves: ClassVar = {"train_nats": "training", "test_nats": "test"}
    unit = "nats per image"

    def levels(self, model: AutoregressiveModel) -> int:
        return model.levels

    def takes_labels(self, model: AutoregressiveModel) -> bool:
        return model.num_classes is not None

    def model_options(self, dataset: Dataset, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"levels": dataset.levels}

    def step(self, model: AutoregressiveModel, batch: Batch, descents: Mapping[str, Descent]) -> dict[str, float]:
        size = batch.images[0].numel()
        losses = (-model.log_prob(part.images, part.labels).mean() * (share / size) for part, share in batch.parts())
        loss, norm = descents["model"].step(losses)
        return {"train_nats": loss * size, "grad_norm": norm}

    def evaluate(
        self,
        model: AutoregressiveModel,
        images: Tensor,
        batch_size: int = 64,
        progress: Progress | None = None,
        importance_samples: int | None = None,
        labels: Tensor | None = None,
    ) -> list[Measure]:
        refuse("importance_samples", importance_samples, "an exact likelihood")
        found = evaluate(model, images, batch_size, progress, labels)
        error = found.standard_error / (images[0].numel() * math.log(2))
        return [
            Measure("nats", self.unit, found.nats, found.standard_error, found.images),
            Measure("bits_per_dim", "bits per sub-pixel", found.bits_per_dim, error, found.images),
        ]

    def sample(
        self,
        model: AutoregressiveModel,
        n: int,
        generator: torch.Generator,
        progress: Progress | None = None,
        temperature: float | None = None,
        label: int | None = None,
    ) -> Tensor:
        temperature = 1.0 if temperature is None else temperature
        condition = classes_to_draw(model, model.num_classes, n, label)
        drawn = model.sample(n, temperature=temperature, generator=generator, progress=progress, condition=condition)
        return dequantise(drawn.cpu(), model.levels)

    def pictures(
        self,
        model: AutoregressiveModel,
        images: Tensor,
        n: int,
        generator: torch.Generator,
        progress: Progress | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, dict[str, Tensor]]:
        real = dequantise(images[:n], model.levels)
        return {"samples": {"samples": self.sample(model, n, generator, progress), "real": real}}
