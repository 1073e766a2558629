"""Autoregressive models: the exact likelihood."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ...models import AutoregressiveModel
from ..data.batches import Batch, LabelledImages
from ..data.sources import Dataset, dequantise
from ..metrics import Measure, evaluate
from ..optimization import Descent
from .base import Drawing, Evaluating, Objective, classes_to_draw, refuse


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
        losses = (model.nats(part.images, part.labels) * (share / size) for part, share in batch.parts())
        loss, norm = descents["model"].step(losses)
        return {"train_nats": loss * size, "grad_norm": norm}

    def evaluate(self, model: AutoregressiveModel, test: LabelledImages, how: Evaluating) -> list[Measure]:
        refuse("importance_samples", how.importance_samples, "an exact likelihood")
        found = evaluate(model, test.images, how.batch_size, how.progress, test.labels)
        error = found.standard_error / (test.images[0].numel() * math.log(2))
        return [
            Measure("nats", self.unit, found.nats, found.standard_error, found.images),
            Measure("bits_per_dim", "bits per sub-pixel", found.bits_per_dim, error, found.images),
        ]

    def sample(self, model: AutoregressiveModel, n: int, how: Drawing) -> Tensor:
        temperature = 1.0 if how.temperature is None else how.temperature
        condition = classes_to_draw(model, model.num_classes, n, how)
        drawn = model.sample(
            n, temperature=temperature, generator=how.generator, progress=how.progress, condition=condition
        )
        return dequantise(drawn.cpu(), model.levels)

    def pictures(
        self, model: AutoregressiveModel, test: LabelledImages, n: int, how: Drawing
    ) -> dict[str, dict[str, Tensor]]:
        real = dequantise(test.images[:n], model.levels)
        return {"samples": {"samples": self.sample(model, n, how), "real": real}}
