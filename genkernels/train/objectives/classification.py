"""Classifiers: the cross-entropy with the labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models import Classifier
from ..data.batches import Batch, LabelledImages
from ..data.sources import Dataset
from ..errors import GenkernelsError
from ..metrics import Measure, mean_over
from ..optimization import Descent
from .base import Drawing, Evaluating, Objective, refuse


@dataclass(frozen=True)
class ClassificationObjective(Objective[Classifier]):
    """Minimises the cross-entropy of the classes."""

    curves: ClassVar = {"train_nats": "training", "test_nats": "test"}
    unit = "nats of cross-entropy per image"

    def levels(self, model: Classifier) -> int:
        return model.levels

    def takes_labels(self, model: Classifier) -> bool:
        return True

    def model_options(self, dataset: Dataset, given: Mapping[str, Any]) -> dict[str, Any]:
        if dataset.train_labels is None:
            raise GenkernelsError(f"a classifier learns labels; {dataset.name} has none")
        return {"levels": dataset.levels, "num_classes": int(dataset.train_labels.max()) + 1}

    def step(self, model: Classifier, batch: Batch, descents: Mapping[str, Descent]) -> dict[str, float]:
        def losses() -> Iterator[Tensor]:
            for part, share in batch.parts():
                yield F.cross_entropy(model(part.images), _known(part.labels)) * share

        loss, norm = descents["model"].step(losses())
        return {"train_nats": loss, "grad_norm": norm}

    def evaluate(self, model: Classifier, test: LabelledImages, how: Evaluating) -> list[Measure]:
        refuse("importance_samples", how.importance_samples, "a classifier")

        def score(x: Tensor, labels: Tensor | None, _: torch.Generator) -> tuple[Tensor, Tensor]:
            logits, classes = model(x), _known(labels)
            return F.cross_entropy(logits, classes, reduction="none"), logits.argmax(1) == classes

        nats, accuracy = mean_over(model, test, score, how.batch_size, how.progress)
        return [Measure("nats", self.unit, *nats), Measure("accuracy", "share of classes found", *accuracy)]

    def sample(self, model: Classifier, n: int, how: Drawing) -> Tensor:
        raise GenkernelsError(
            "a classifier draws no images; it judges those of others: genkernels evaluate --classifier"
        )

    def pictures(self, model: Classifier, test: LabelledImages, n: int, how: Drawing) -> dict[str, dict[str, Tensor]]:
        return {}


def _known(labels: Tensor | None) -> Tensor:
    assert labels is not None  # since takes_labels says so
    return labels
