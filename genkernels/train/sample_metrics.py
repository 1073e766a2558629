"""Metrics of drawn images, by what a trained classifier makes of them.

The figures that papers print are of a network trained on ImageNet. These are of the user's own classifier: they compare
models that one classifier judged, and nothing else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models import Classifier
from .data.batches import LabelledImages
from .data.file_images import Images
from .data.sources import in_levels
from .errors import GenkernelsError
from .metrics import Measure, figures_over, mean_of
from .objectives.base import Progress

SPLITS = 10
LEAST_IMAGES = 2 * SPLITS


def inception_scores(log_probabilities: Tensor, splits: int = SPLITS) -> Tensor:
    """The Inception score of each split of a set of images: [N, classes] -> [splits], 1 .. classes.

    exp of the mean over images of KL(p(class given image) || p(class)), p(class) being the mean over the images of the
    split. It is 1 where all images look alike to the classifier, or where it finds no class in any.

    Args:
        log_probabilities: log p(class given image) in nats; in float64 rather than less.
        splits: parts in their order, 1 .. N.

    Source: Salimans et al. 2016, "Improved Techniques for Training GANs", section 4.
    """
    scores = []
    for part in log_probabilities.tensor_split(splits):
        marginal = part.logsumexp(0) - math.log(len(part))
        scores.append((part.exp() * (part - marginal)).nan_to_num(0.0).sum(1).mean().exp())
    return torch.stack(scores)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Fréchet distance of the normal distributions that have the means and covariances of two sets of features.

    |mean 1 - mean 2|² + tr(C1 + C2 - 2 (C1 C2)^(1/2)). Of few images it comes out too large: compare figures of equal
    numbers.

    Args:
        first, second: features [N, K] and [M, K], at least two rows each; in float64 rather than less.

    Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
    equation 6. The trace of the root of the product is the sum of the singular values of the product of the roots.
    """
    mean = (first.mean(0) - second.mean(0)).square().sum()
    covariances = [torch.cov(features.T).view(features.shape[1], -1) for features in (first, second)]
    product = _root(covariances[0]) @ _root(covariances[1])
    spread = sum(covariance.trace() for covariance in covariances) - 2 * torch.linalg.svdvals(product).sum()
    return max(0.0, float(mean + spread))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def check_classifier(classifier: object, channels: int, height: int, width: int) -> Classifier:
    """The classifier, if it takes images of that shape.

    Raises:
        GenkernelsError: it does not, or is none.
    """
    if not isinstance(classifier, Classifier):
        raise GenkernelsError(f"classifier: expected a run of train classifier; got a {type(classifier).__name__}")
    takes = (classifier.in_channels, *classifier.image_size)
    if takes != (channels, height, width):
        raise GenkernelsError(
            f"classifier: expected one of images {channels} x {height} x {width}; got one of {takes[0]} x {takes[1]} "
            f"x {takes[2]}"
        )
    return classifier


def sample_measures(
    classifier: Classifier, drawn: Tensor, real: Images, batch_size: int, progress: Progress | None = None
) -> list[Measure]:
    """Inception score of drawn images, that of real ones, and the Fréchet distance between both.

    Args:
        classifier: see :func:`check_classifier`.
        drawn: uint8 [N, C, H, W], 0 .. 255; at least ``LEAST_IMAGES``.
        real: uint8 [M, C, H, W], 0 .. 255; the same.
        batch_size: images at a time.
        progress: called as ``progress(done, total)`` now and then.

    Returns:
        Three measures. A score is the mean over ten splits with its standard error. The error of the distance is that
        of the drawn images alone, from ten sets that each leave a tenth out (the jackknife).

    Raises:
        GenkernelsError: there are too few images.
    """

    def judge(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        code = classifier.encode(x)
        return code, classifier.head(code).double().log_softmax(1)

    total = len(drawn) + len(real)
    codes, scores = [], []
    for name, images, before in (("drawn", drawn, 0), ("real", real, len(drawn))):
        if len(images) < LEAST_IMAGES:
            raise GenkernelsError(f"classifier: expected at least {LEAST_IMAGES} {name} images; got {len(images)}")

        def report(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        levels = LabelledImages(in_levels(images, classifier.levels))
        code, log_probabilities = figures_over(classifier, levels, judge, batch_size, report)
        # Images may be in the order of their classes, or have classes in turn; a split is to have all of them.
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        codes.append(code[order])
        scores.append(mean_of(inception_scores(log_probabilities[order]))[:2])
    parts = codes[0].tensor_split(SPLITS)
    without = [torch.cat(parts[:left_out] + parts[left_out + 1 :]) for left_out in range(SPLITS)]
    distances = torch.tensor([frechet_distance(rest, codes[1]) for rest in without], dtype=torch.float64)
    error = math.sqrt((SPLITS - 1) / SPLITS * (distances - distances.mean()).square().sum().item())
    return [
        Measure("inception_score", "Inception score by the classifier", *scores[0], len(drawn)),
        Measure("real_inception_score", "that of real images", *scores[1], len(real)),
        Measure(
            "frechet_distance", "Fréchet distance of the classifier's features", frechet_distance(*codes), error,
            len(drawn),
        ),
    ]  # fmt: skip
