"""Checkpoints: a model with its configuration and, to go on training it exactly, the state of its run.

One file of plain values and tensors, so it loads with ``weights_only=True``: nothing in it can run code.
"""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..models import GenerativeModel
from .atomic_write import write_atomically
from .errors import CheckpointError, GenkernelsError
from .objectives import Objective
from .recipes import Recipe, find_recipe

CHECKPOINT, BEST_CHECKPOINT = "model.pt", "best.pt"  # in a run's folder
FORMAT = "genkernels-checkpoint-1"
_UNREADABLE = (
    RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, LookupError,
)  # fmt: skip
_NEEDED = {"recipe": str, "objective": dict, "config": dict, "model": dict, "settings": dict}


def save_checkpoint(
    path: Path,
    recipe: Recipe,
    objective: Objective[Any],
    model: GenerativeModel,
    settings: dict[str, Any],
    **training: Any,
) -> None:
    """Write a checkpoint; the old file of that name stays whole until the new one is on disk.

    Args:
        path: the file.
        recipe: that of the model; its name is stored.
        objective: its options are stored.
        model: its ``config`` and ``state_dict`` are stored.
        settings: plain values: at least ``data``, the specification of the data set.
        training: what a resumed run needs: plain values, containers and tensors.

    Raises:
        OSError: the folder cannot be written.
    """
    content = {
        "format": FORMAT,
        "recipe": recipe.name,
        "objective": asdict(objective),
        "config": model.config,
        "model": model.state_dict(),
        "settings": settings,
        **training,
    }
    buffer = io.BytesIO()  # PyTorch's writer would turn a full disk into an error of its own
    torch.save(content, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; of the ``model.pt`` in a run's folder, where ``path`` is one.

    Raises:
        CheckpointError: the file is missing, damaged or something else.
    """
    path = checkpoint_in(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # PyTorch does not look at the checksums
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        # Not PyTorch's own words: they advise to load the file in a way that could run code.
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({type(error).__name__})") from error
    if damaged:
        raise CheckpointError(f"{path}: damaged: the checksum of its record {damaged} is wrong")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a genkernels checkpoint (expected format {FORMAT!r})")
    for key, kind in _NEEDED.items():
        if not isinstance(content.get(key), kind):
            raise CheckpointError(f"{path}: damaged: it has no {key!r}")
    return content


def checkpoint_in(path: Path | str) -> Path:
    """The checkpoint itself, or that of a run whose folder ``path`` is."""
    path = Path(path)
    return path / CHECKPOINT if path.is_dir() else path


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode, the recipe and objective that it was trained by, and the checkpoint's content."""

    recipe: Recipe
    objective: Objective[Any]
    model: GenerativeModel
    content: dict[str, Any]


def open_model(path: Path | str) -> TrainedModel:
    """The model in a checkpoint or in a run's folder, on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged or something else; its recipe is unknown, its weights do not fit
            its configuration, or are not finite.
    """
    return trained_model(read_checkpoint(path), checkpoint_in(path))


def trained_model(content: dict[str, Any], path: Path) -> TrainedModel:
    """As :func:`open_model`, of what :func:`read_checkpoint` gave; ``path`` is for messages."""
    for weight, values in content["model"].items():
        if isinstance(values, torch.Tensor) and values.is_floating_point() and not values.isfinite().all():
            raise CheckpointError(f"{path}: its weight {weight!r} is not finite: the training has diverged")
    try:
        recipe = find_recipe(content["recipe"])
        objective = recipe.build_objective(**content["objective"])
        model = recipe.build(**content["config"])
        model.load_state_dict(content["model"])
    except (GenkernelsError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its weights and its configuration do not fit: {error}") from error
    return TrainedModel(recipe, objective, model.eval(), content)


def load_model(path: Path | str) -> tuple[GenerativeModel, dict[str, Any]]:
    """The model in a checkpoint or in a run's folder, in evaluation mode on the CPU, and the checkpoint's content.

    Raises:
        CheckpointError: see :func:`open_model`.
    """
    trained = open_model(path)
    return trained.model, trained.content
