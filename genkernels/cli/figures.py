"""Figures of an evaluation as a JSON file: what they are, of what, and by which version of the program."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..train.atomic_write import write_atomically
from ..train.checkpoint import TrainedModel
from ..train.data.binarise import METHODS
from ..train.metrics import Measure
from ..train.run import absolute_spec
from ..version import __version__
from .trained import EvaluationData


def write_figures(
    path: Path,
    checkpoint: Path,
    trained: TrainedModel,
    data: EvaluationData,
    measures: Sequence[Measure],
    classifier: Path | None = None,
) -> None:
    """Write the figures of a trained model over ``data``; ``classifier`` is the checkpoint of what judged its images.

    Standard errors that do not exist (of one image) are null. ``binarisation`` is null for images of other than two
    levels, ``commit`` where the program is not run from a clone of its repository.

    Raises:
        OSError: the file cannot be written.
    """
    content, model = trained.content, trained.model
    figures = {
        measure.key: {
            "what": measure.label,
            "mean": measure.mean,
            "standard_error": measure.standard_error if math.isfinite(measure.standard_error) else None,
            "images": measure.images,
        }
        for measure in measures
    }
    record: dict[str, Any] = {
        "figures": figures,
        "data": absolute_spec(data.name),
        "binarisation": None if data.binarize is None else {"name": data.binarize, "what": METHODS[data.binarize]},
        "classifier": None if classifier is None else str(classifier.absolute()),
        "levels": trained.objective.levels(model),
        "model": {
            "name": trained.recipe.name,
            "config": model.config,
            "parameters": sum(p.numel() for p in model.parameters()),
            "checkpoint": str(checkpoint.absolute()),
            "step": content.get("progress", {}).get("step"),
        },
        "objective": content["objective"],
        "settings": content["settings"],
        "genkernels": {"version": __version__, "commit": _commit()},
    }
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _commit() -> str | None:
    """The commit of the clone that this file is part of, "+ changes" behind it where tracked files differ from it."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # an environment inside some other repository
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" + changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):  # no git, or an installed copy
        return None
