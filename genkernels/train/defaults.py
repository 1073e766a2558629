"""Defaults of a run by model and data set, each with its source: a paper, or a run of this project.

What no row gives is the recipe's, the constructor's or the objective's own default, which claims no source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Defaults:
    """One row.

    Attributes:
        recipe: name of the model.
        data: name of the data set, without its path; None for all of them.
        source: of all the numbers.
        settings: fields of :class:`genkernels.train.Settings`.
        model: arguments of the model's constructor.
    """

    recipe: str
    data: str | None
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)


_PIXELRNN = "van den Oord et al. 2016, section 5, as others quote it"  # without learning rates
_SMALL_IMAGES = {"batch_size": 16, "optimizer": "rmsprop"}

DEFAULTS = (
    Defaults("pixelcnn", "digits", "the run of genkernels demo", {"batch_size": 32, "learning_rate": 5e-4}),
    Defaults("pixelrnn", None, _PIXELRNN, {"optimizer": "rmsprop"}),
    Defaults("pixelrnn", "mnist", _PIXELRNN, _SMALL_IMAGES, {"hidden_channels": 16, "num_layers": 7}),
    Defaults("pixelrnn", "cifar10", _PIXELRNN, _SMALL_IMAGES),
    Defaults(
        "gan", "ring", "the runs of bench/gan_modes.py", {"batch_size": 128, "learning_rate": 1e-3},
        {"hidden_channels": 128, "num_layers": 2, "latent_dim": 16},
    ),
    Defaults("dcgan", None, "Radford et al. 2016, section 4", {"batch_size": 128, "learning_rate": 2e-4}),
)  # fmt: skip


def defaults_of(recipe: str, data: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and arguments of the model for a data set, as "mnist:PATH"; a row for all of them counts less."""
    name = data.partition(":")[0]
    settings: dict[str, Any] = {}
    model: dict[str, Any] = {}
    for wanted in (None, name):
        for row in DEFAULTS:
            if (row.recipe, row.data) == (recipe, wanted):
                settings |= row.settings
                model |= row.model
    return settings, model
