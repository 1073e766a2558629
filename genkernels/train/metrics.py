"""Metrics: means over images that a model was not trained on, the likelihood first of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import AutoregressiveModel, GenerativeModel, bits_per_dim
from .data.batches import LabelledImages
from .data.file_images import Images


@dataclass(frozen=True)
class Evaluation:
    """Negative log-likelihood over a set of images.

    Attributes:
        images: how many.
        nats: mean nats per image.
        standard_error: of that mean; NaN for one image.
        bits_per_dim: mean bits per sub-pixel.
    """

    images: int
    nats: float
    standard_error: float
    bits_per_dim: float


@dataclass(frozen=True)
class Measure:
    """The mean of one figure over a set of images.

    Attributes:
        key: its name in the history, after "test_".
        label: its name in tables: "nats per image".
        mean, standard_error: of the figure, and of that mean; the error of one image is NaN.
        images: how many.
    """

    key: str
    label: str
    mean: float
    standard_error: float
    images: int

    def __str__(self) -> str:
        digits = max(0, 4 - math.floor(math.log10(abs(self.mean)))) if self.mean and math.isfinite(self.mean) else 4
        mean = f"{self.mean:.{digits}f}"
        return mean if math.isnan(self.standard_error) else f"{mean} ± {self.standard_error:.{digits}f}"


@torch.no_grad()
def mean_over(
    model: GenerativeModel,
    test: LabelledImages,
    score: Callable[[Tensor, Tensor | None], Sequence[Tensor]],
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[float, float, int]]:
    """Mean, its standard error and the number of images, for each of the figures that ``score`` returns.

    Args:
        model: on any device; put back into the mode that it was in.
        test: at least one image.
        score: of a batch and its labels on the model's device: figures [batch] with the model in evaluation mode.
        batch_size: images at a time.
        progress: called as ``progress(done, total)`` after each batch.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = []
    try:
        for first in range(0, len(test), batch_size):
            here = slice(first, first + batch_size)
            labels = None if test.labels is None else test.labels[here].to(device)
            parts.append([figure.double().cpu() for figure in score(test.images[here].to(device), labels)])
            if progress is not None:
                progress(min(here.stop, len(test)), len(test))
    finally:
        model.train(was_training)
    each = [torch.cat(figures) for figures in zip(*parts, strict=True)]
    errors = [x.std().item() / math.sqrt(len(x)) if len(x) > 1 else math.nan for x in each]
    return [(x.mean().item(), error, len(x)) for x, error in zip(each, errors, strict=True)]


def evaluate(
    model: AutoregressiveModel,
    images: Images,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
    labels: Tensor | None = None,
) -> Evaluation:
    """Mean negative log-likelihood of levels [N, C, H, W] under an autoregressive model; see :func:`mean_over`.

    ``labels``, int64 [N], are for a model with classes.
    """

    def score(x: Tensor, condition: Tensor | None) -> tuple[Tensor]:
        return (-model.log_prob(x, condition),)

    ((nats, error, count),) = mean_over(model, LabelledImages(images, labels), score, batch_size, progress)
    return Evaluation(count, nats, error, bits_per_dim(nats, images[0].numel()))
