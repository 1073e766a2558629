"""A training run in a folder: started, guarded against being overwritten, or resumed as it was."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..models import GenerativeModel
from . import processes
from .checkpoint import CHECKPOINT, read_checkpoint, trained_model
from .data.batches import LabelledImages
from .data.binarise import METHODS, TEST_SEED, stochastic
from .data.file_images import FileImages, Images
from .data.sources import Dataset, in_levels, open_dataset
from .defaults import defaults_of
from .errors import TrainingError
from .loop import Trainer, augmentation_of
from .objectives import Objective
from .optimization import OPTIMIZERS, PRECISIONS
from .recipes import Recipe, find_recipe
from .schedule import SCHEDULES
from .settings import Limits, Settings


def start_run(
    recipe: str,
    folder: Path,
    settings: Mapping[str, Any],
    model_options: Mapping[str, Any],
    objective_options: Mapping[str, Any] = MappingProxyType({}),
    *,
    limits: Limits | None = None,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    skip_broken: bool = False,
) -> tuple[Trainer, Dataset]:
    """A new run.

    Args:
        recipe: name of what to train.
        folder: made when it is missing.
        settings: ``data`` and any other fields of :class:`Settings`; what is missing comes from the table of
            :mod:`~genkernels.train.defaults`, else from the recipe.
        model_options: arguments of the model's constructor; the size and colours of the images come from the
            data, and what else the objective takes from there, such as ``levels``, when missing, too.
        objective_options: fields of the recipe's objective.
        limits: epochs or steps give a schedule of the learning rate its length, where the settings do not.
        overwrite: whether a run that is there already may be replaced.
        skip_broken: leave out files of a folder of images that cannot be read.

    Raises:
        GenkernelsError: the folder holds a run, the data cannot be opened, or an option does not fit.
        OSError: the folder cannot be made.
    """
    chosen_recipe = find_recipe(recipe)
    if processes.first_does((folder / CHECKPOINT).exists) and not overwrite:
        raise TrainingError(f"{folder} holds a run already: go on with --resume, or replace it with --overwrite")
    own_settings, own_model = defaults_of(recipe, settings["data"])
    defaults = {
        "size": None,
        "batch_size": chosen_recipe.batch_size,
        "learning_rate": chosen_recipe.learning_rate,
        "optimizer": chosen_recipe.optimizer,
        "clip": chosen_recipe.clip,
        "seed": 0,
        **own_settings,
    }
    chosen = Settings(**{**defaults, **settings, "data": absolute_spec(settings["data"])})
    _check(chosen)
    objective = chosen_recipe.build_objective(**objective_options)
    dataset = processes.together(lambda: _dataset(chosen, skip_broken))
    if dataset.mixture is not None and not chosen_recipe.takes_points:
        raise TrainingError(f"data: {dataset.name} holds points of the plane; {recipe} takes images")
    chosen = _with_length(chosen, limits or Limits(), len(dataset.train))
    _, channels, height, width = dataset.test.shape
    options = {
        **objective.model_options(dataset, model_options),
        **own_model,
        **model_options,
        "in_channels": channels,
        "image_size": (height, width),
    }
    torch.manual_seed(chosen.seed)
    model = chosen_recipe.build(**options)
    processes.first_does(lambda: folder.mkdir(parents=True, exist_ok=True))
    return _trainer(chosen_recipe, objective, model, dataset, chosen, folder, device), dataset


def resume_run(
    recipe: str,
    folder: Path,
    settings: Mapping[str, Any],
    model_options: Mapping[str, Any],
    objective_options: Mapping[str, Any] = MappingProxyType({}),
    *,
    device: torch.device | str = "cpu",
    skip_broken: bool = False,
) -> tuple[Trainer, Dataset]:
    """The run in a folder, exactly where it stopped.

    Args:
        recipe, settings, model_options, objective_options: what the caller insists on; everything else is as the run
            has it. ``data`` may name another place of the same images, where they have moved.
        skip_broken: as in :func:`start_run`.

    Raises:
        GenkernelsError: there is no run, it cannot be read, or it was started with other options.
    """
    path = folder / CHECKPOINT
    content = processes.first_does(lambda: read_checkpoint(path))
    asked = {"model": recipe, **settings, **model_options, **objective_options}
    moved_to = absolute_spec(asked.pop("data", content["settings"].get("data", "")))
    if moved_to.partition(":")[0] == str(content["settings"].get("data")).partition(":")[0]:
        content["settings"]["data"] = moved_to
    else:
        asked["data"] = moved_to
    found = {"model": content["recipe"], **content["settings"], **content["config"], **content["objective"]}
    for name, value in asked.items():
        if name not in found or found[name] != value:
            raise TrainingError(f"{name}: the run in {folder} has {found.get(name)!r}; it cannot go on with {value!r}")
    try:
        chosen = Settings(**content["settings"])
    except TypeError as error:
        raise TrainingError(f"{path}: not a run that can be resumed: {error}") from error
    trained = trained_model(content, path)
    dataset = processes.together(lambda: _dataset(chosen, skip_broken))
    trainer = _trainer(trained.recipe, trained.objective, trained.model, dataset, chosen, folder, device)
    if trainer.fingerprint != content.get("images", trainer.fingerprint):
        raise TrainingError(f"data: the run in {folder} has other images than those of {chosen.data}")
    trainer.restore(content)
    return trainer, dataset


def absolute_spec(spec: str) -> str:
    """The specification of a data set, its path made absolute: a run may be resumed from another folder."""
    name, colon, path = spec.partition(":")
    return f"{name}:{Path(path).expanduser().absolute()}" if colon and path else spec


def _trainer(
    recipe: Recipe,
    objective: Objective[Any],
    model: GenerativeModel,
    dataset: Dataset,
    settings: Settings,
    folder: Path,
    device: torch.device | str,
) -> Trainer:
    levels = objective.levels(model)
    settings = _with_binarisation(settings, levels, dataset)
    greys = augmentation_of(settings, levels).takes_greys
    train = dataset.train if greys else in_levels(dataset.train, levels)
    test = levels_of_test(dataset, levels, settings.binarize)
    if train.shape[1] != model.in_channels:
        raise TrainingError(f"the model takes {model.in_channels} channels; {settings.data} has {train.shape[1]}")
    train_labels, test_labels = labels_for(objective, model, dataset)
    return Trainer(
        recipe, objective, model, LabelledImages(train, train_labels, dataset.mixture),
        LabelledImages(test, test_labels, dataset.mixture),
        settings, folder, device,
    )  # fmt: skip


def _dataset(settings: Settings, skip_broken: bool) -> Dataset:
    return open_dataset(
        settings.data, settings.size, crop=settings.crop, grey=settings.grey, fixed=settings.binarize == "fixed",
        skip_broken=skip_broken,
    )  # fmt: skip


def _with_binarisation(settings: Settings, levels: int, dataset: Dataset) -> Settings:
    """The settings with the way in which grey images get two levels."""
    if levels != 2 or dataset.mixture is not None:
        if settings.binarize is not None:
            raise TrainingError(
                f"binarize: expected a model of 2 levels; got {settings.binarize!r} and {levels} levels"
            )
        return settings
    return settings if settings.binarize is not None else replace(settings, binarize="threshold")


def levels_of_test(dataset: Dataset, levels: int, binarize: str | None) -> Images:
    """The test images in levels; stochastically binarised ones are always the same."""
    if binarize != "stochastic":
        return in_levels(dataset.test, levels)
    if isinstance(dataset.test, FileImages):
        raise TrainingError(
            f"binarize: 'stochastic' draws all test images at once; those of {dataset.name} are too large for memory"
        )
    return stochastic(dataset.test, torch.Generator().manual_seed(TEST_SEED))


def labels_for(
    objective: Objective[Any], model: GenerativeModel, dataset: Dataset
) -> tuple[Tensor | None, Tensor | None]:
    """The labels of the training and of the test images, for a model that takes them; else None twice.

    Raises:
        TrainingError: the data have none, or more classes than the model.
    """
    if not objective.takes_labels(model):
        return None, None
    classes = model.config["num_classes"]
    if dataset.train_labels is None or dataset.test_labels is None:
        raise TrainingError(f"num_classes: {dataset.name} has no labels")
    found = int(max(dataset.train_labels.max(), dataset.test_labels.max())) + 1
    if found > classes:
        raise TrainingError(f"num_classes: expected at least {found}, the classes of {dataset.name}; got {classes}")
    return dataset.train_labels, dataset.test_labels


def _with_length(settings: Settings, limits: Limits, images: int) -> Settings:
    """The settings with the length of the schedule, where it has one."""
    if settings.schedule == "constant" or settings.schedule_steps is not None:
        return settings
    steps = limits.steps
    if steps is None and limits.epochs is not None:
        steps = limits.epochs * math.ceil(images / settings.batch_size)
    if steps is None:
        raise TrainingError(f"schedule: {settings.schedule!r} needs a length in steps or epochs; got neither")
    return replace(settings, schedule_steps=steps)


def _check(settings: Settings) -> None:
    names: dict[str, Collection[str]] = {
        "optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS, "binarize": METHODS,
    }  # fmt: skip
    for name, known in names.items():
        value = getattr(settings, name)
        if value not in known and not (name == "binarize" and value is None):
            raise TrainingError(f"{name}: unknown {value!r}; expected one of: {', '.join(known)}")
    for name in ("batch_size", "learning_rate", "clip", "micro_batches"):
        value = getattr(settings, name)
        if not value > 0:
            raise TrainingError(f"{name}: expected a number above 0; got {value}")
    for name in ("weight_decay", "warmup"):
        value = getattr(settings, name)
        if not value >= 0:
            raise TrainingError(f"{name}: expected a number of at least 0; got {value}")
    if not 0 <= settings.ema < 1:
        raise TrainingError(f"ema: expected a number of at least 0 and below 1; got {settings.ema}")
