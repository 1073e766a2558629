"""Recipes: the models that can be trained by name, each with its objective and default settings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..models import (
    DCGAN,
    FVBN,
    GAN,
    VAE,
    AdversarialAutoencoder,
    Autoencoder,
    Classifier,
    GatedPixelCNN,
    GenerativeModel,
    PixelCNN,
    PixelRNN,
    PixelVAE,
)
from .errors import GenkernelsError
from .objectives import (
    AdversarialAutoencoderObjective,
    AdversarialObjective,
    ClassificationObjective,
    LikelihoodObjective,
    Objective,
    ReconstructionObjective,
    VariationalObjective,
)


@dataclass(frozen=True)
class Recipe:
    """A model family and how it is trained.

    Attributes:
        name: what the command line and checkpoints call it.
        model: its constructor.
        summary: one line for people.
        objective: how a step is taken, what is measured and which pictures are made; its fields are options of a run.
        batch_size, learning_rate, optimizer: of a run for which :mod:`~genkernels.train.defaults` has no others.
        clip: the largest gradient norm of the objective's loss; larger gradients are scaled down to it.
        takes_points: whether the model can be trained on points of the plane, too.
    """

    name: str
    model: Callable[..., GenerativeModel]
    summary: str
    objective: type[Objective[Any]] = LikelihoodObjective
    batch_size: int = 16
    learning_rate: float = 1e-3
    optimizer: str = "adam"
    clip: float = 1.0
    takes_points: bool = False

    def build(self, **options: Any) -> GenerativeModel:
        """The model; options that the constructor does not have or refuses raise a GenkernelsError."""
        return _build(self.model, "model", options)

    def build_objective(self, **options: Any) -> Objective[Any]:
        """The objective; options that it does not have or refuses raise a GenkernelsError."""
        return _build(self.objective, "objective", options)


def _build(constructor: Callable[..., Any], kind: str, options: Mapping[str, Any]) -> Any:
    known = sorted(inspect.signature(constructor).parameters)
    for name in sorted(set(options) - set(known)):
        raise GenkernelsError(f"{name}: this {kind} has no such option; it has {', '.join(known) or 'none'}")
    try:
        return constructor(**options)
    except ValueError as error:  # the constructors' own checks: argument, expected, got
        raise GenkernelsError(str(error)) from error


_ALL = (
    Recipe(
        "fvbn", FVBN, "logistic regressions, a belief network without hidden units (Frey et al. 1996)", batch_size=64
    ),
    Recipe("pixelcnn", PixelCNN, "masked convolutions: 7x7, then 3x3 layers (van den Oord et al. 2016)"),
    Recipe("gated-pixelcnn", GatedPixelCNN, "two gated stacks, no blind spot (van den Oord et al. 2016b)"),
    Recipe(
        "pixelrnn",
        PixelRNN,
        "an LSTM that sweeps over diagonals or rows (van den Oord et al. 2016)",
    ),
    Recipe("vae", VAE, "a convolutional VAE (Kingma & Welling 2014)", VariationalObjective, batch_size=128),
    Recipe(
        "pixelvae",
        PixelVAE,
        "a VAE with a PixelCNN as its decoder (Gulrajani et al. 2017)",
        VariationalObjective,
        batch_size=64,
    ),
    Recipe("autoencoder", Autoencoder, "a convolutional autoencoder", ReconstructionObjective, batch_size=128),
    Recipe(
        "adversarial-autoencoder",
        AdversarialAutoencoder,
        "an autoencoder whose codes are pushed to a normal distribution (Makhzani et al. 2016)",
        AdversarialAutoencoderObjective,
        batch_size=128,
    ),
    Recipe(
        "gan",
        GAN,
        "multilayer perceptrons that play against each other (Goodfellow et al. 2014)",
        AdversarialObjective,
        batch_size=128,
        learning_rate=2e-4,
        clip=math.inf,
        takes_points=True,
    ),
    Recipe(
        "dcgan",
        DCGAN,
        "convolutional adversarial networks (Radford et al. 2016)",
        AdversarialObjective,
        clip=math.inf,
    ),
    Recipe(
        "classifier",
        Classifier,
        "a convolutional classifier, to judge what the others draw",
        ClassificationObjective,
        batch_size=128,
    ),
)
RECIPES = {recipe.name: recipe for recipe in _ALL}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        GenkernelsError: there is none; the message lists those there are.
    """
    if name not in RECIPES:
        raise GenkernelsError(f"unknown model {name!r}; expected one of: {', '.join(RECIPES)}")
    return RECIPES[name]
