"""A trained model with the images of a data set: those to evaluate it on, and those that it completes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..models import AutoregressiveModel, Classifier, GenerativeModel
from ..train.checkpoint import TrainedModel, open_model
from ..train.data.batches import LabelledImages
from ..train.data.binarise import METHODS
from ..train.data.sources import Dataset, dequantise, open_dataset
from ..train.errors import GenkernelsError
from ..train.run import absolute_spec, labels_for, levels_of_test
from ..train.sample_metrics import check_classifier


@dataclass(frozen=True)
class EvaluationData:
    """What a trained model is evaluated on.

    Attributes:
        name: the specification of the data set.
        test: its test images, in levels.
        binarize: how they got two levels, a name of ``METHODS``; None for others.
    """

    name: str
    test: LabelledImages
    binarize: str | None


def evaluation_images(
    console: Console, trained: TrainedModel, data: str | None, skip_broken: bool = False, binarize: str | None = None
) -> EvaluationData:
    """The test images of ``data`` or else of the run, of two levels as ``binarize`` or else the run has it.

    A note on the console says where they are unlike those that the model was trained on.
    """
    model, settings = trained.model, trained.content["settings"]
    levels, crop = trained.objective.levels(model), settings.get("crop")
    method = _method(settings.get("binarize"), binarize, levels)
    dataset = open_dataset(
        data or settings["data"], settings["size"] if not data or crop else None,
        crop=crop, grey=settings.get("grey", False), fixed=method == "fixed", skip_broken=skip_broken,
    )  # fmt: skip
    channels, *size = dataset.test.shape[1:]
    if channels != model.in_channels:
        raise GenkernelsError(f"the model takes {model.in_channels} channels; {dataset.name} has {channels}")
    if not isinstance(model, AutoregressiveModel) and tuple(size) != model.image_size:
        expected, found = (f"{height} x {width}" for height, width in (model.image_size, size))
        raise GenkernelsError(f"the model takes images of {expected}; those of {dataset.name} are {found}")
    notes = []
    if data is not None and absolute_spec(data) != absolute_spec(settings["data"]):
        notes += _unlike_training(trained.content, dataset, levels)
    if method is not None and method != settings.get("binarize"):
        notes.append(f"the model was trained on images {METHODS[settings['binarize']]}; these are {METHODS[method]}")
    for note in notes:
        console.print(f"note: {note}")
    _, labels = labels_for(trained.objective, model, dataset)
    test = LabelledImages(levels_of_test(dataset, levels, method), labels, dataset.mixture)
    return EvaluationData(data or settings["data"], test, method)


def _method(trained: str | None, asked: str | None, levels: int) -> str | None:
    """How images get two levels."""
    if asked is None:
        return trained
    if asked not in METHODS:
        raise GenkernelsError(f"binarize: unknown {asked!r}; expected one of: {', '.join(METHODS)}")
    if trained is None:
        raise GenkernelsError(f"binarize: expected a model of 2 levels; got {asked!r} and {levels} levels")
    return asked


def _unlike_training(content: dict[str, Any], dataset: Dataset, levels: int) -> list[str]:
    """Notes on why figures over these images do not compare with those over the model's own."""
    notes = []
    trained, found = content["config"].get("image_size"), tuple(dataset.test.shape[2:])
    if trained is not None and tuple(trained) != found:
        before, now = (f"{height} x {width}" for height, width in (trained, found))
        notes.append(f"the model was trained on images of {before}; these are {now}")
    if levels < dataset.levels:
        notes.append(f"the model knows {levels} grey levels; these images have {dataset.levels}, and are rounded down")
    return notes


def judge_of(classifier: Path, model: GenerativeModel, data: EvaluationData) -> Classifier:
    """The classifier in a checkpoint, to judge what a model draws beside the images of ``data``.

    Raises:
        GenkernelsError: there is none, or it takes other images.
    """
    found = open_model(classifier).model
    check_classifier(found, *data.test.images.shape[1:])
    return check_classifier(found, model.in_channels, *model.image_size)


def binarised(method: str | None) -> str:
    """What belongs behind a figure: which images of two levels it is for; "" for other images."""
    return "" if method is None else f" ({METHODS[method]})"


def given_images(console: Console, trained: TrainedModel, data: str | None, n: int) -> LabelledImages:
    test = evaluation_images(console, trained, data).test
    if n > len(test):
        raise GenkernelsError(f"-n {n}: there are only {len(test)} test images to complete")
    return test.first(n)


def complete_images(
    model: AutoregressiveModel,
    real: LabelledImages,
    generator: torch.Generator,
    step: Any,
    temperature: float,
) -> dict[str, torch.Tensor]:
    """Grids of images in 0 .. 255: their upper halves, those completed, and the real ones."""
    given, labels = real.images[:], real.labels
    known = torch.zeros(1, 1, *given.shape[2:], dtype=torch.bool)
    known[:, :, : given.shape[2] // 2] = True
    condition = None if labels is None else labels.to(next(model.parameters()).device)
    drawn = model.sample(
        len(given), condition=condition, given=given, known=known, size=tuple(given.shape[2:]),
        temperature=temperature, generator=generator, progress=step,
    )  # fmt: skip
    grids = {"given": given * known, "completed": drawn.cpu(), "real": given}
    return {title: dequantise(images, model.levels) for title, images in grids.items()}
