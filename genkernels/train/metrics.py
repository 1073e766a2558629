"""Metrics: means over images that a model was not trained on, the likelihood first of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import AutoregressiveModel, GenerativeModel, bits_per_dim
from . import processes
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


Score = Callable[[Tensor, Tensor | None, torch.Generator], Sequence[Tensor]]


@torch.no_grad()
def figures_over(
    model: GenerativeModel,
    test: LabelledImages,
    score: Score,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """Each of the figures that ``score`` returns, of all images: float64 [N, ...] on the CPU.

    The processes of a run take the batches in turn; all of them get all figures.

    Args:
        model: on any device; put back into the mode that it was in.
        test: at least one image.
        score: of a batch, its labels and a random generator of its own: figures [batch, ...] with the model in
            evaluation mode. Images and labels are on the model's device.
        batch_size: images at a time.
        progress: called as ``progress(done, total)`` after each batch.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = []
    own = range(processes.rank() * batch_size, len(test), processes.count() * batch_size)
    try:
        for first in own:
            here = slice(first, first + batch_size)
            labels = None if test.labels is None else test.labels[here].to(device)
            generator = torch.Generator().manual_seed(first)
            found = score(test.images[here].to(device), labels, generator)
            parts.append((first, [figure.double().cpu() for figure in found]))
            if progress is not None:
                progress(min(here.stop, len(test)), len(test))
    finally:
        model.train(was_training)
    in_order = sorted((part for one in processes.gather(parts) for part in one), key=lambda part: part[0])
    return [torch.cat(figures) for figures in zip(*(found for _, found in in_order), strict=True)]


def mean_of(figures: Tensor) -> tuple[float, float, int]:
    """The mean of figures [N], its standard error (NaN for one), and N."""
    error = figures.std().item() / math.sqrt(len(figures)) if len(figures) > 1 else math.nan
    return figures.mean().item(), error, len(figures)


def mean_over(
    model: GenerativeModel,
    test: LabelledImages,
    score: Score,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[float, float, int]]:
    """:func:`mean_of` each of the figures that ``score`` returns; arguments as in :func:`figures_over`."""
    return [mean_of(figures) for figures in figures_over(model, test, score, batch_size, progress)]


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

    def score(x: Tensor, condition: Tensor | None, _: torch.Generator) -> tuple[Tensor]:
        return (-model.log_prob(x, condition),)

    ((nats, error, count),) = mean_over(model, LabelledImages(images, labels), score, batch_size, progress)
    return Evaluation(count, nats, error, bits_per_dim(nats, images[0].numel()))
