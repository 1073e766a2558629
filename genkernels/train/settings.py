"""Settings and limits of a training run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Everything that decides the course of a run, and so must stay as it was when it is resumed.

    Attributes:
        data: specification of the data set; ``size`` as :func:`genkernels.train.data.sources.open_dataset` takes it.
        batch_size: images per step; the last batch of an epoch may be smaller.
        learning_rate, optimizer: "adam" or "rmsprop", their other constants as the family's objective has them.
        clip: largest norm of the gradient of the loss (of nats per sub-pixel, for a likelihood); infinity for none.
        seed: of the initial weights, the order of the images and everything else that is random.
    """

    data: str
    size: tuple[int, int] | None
    batch_size: int
    learning_rate: float
    optimizer: str
    clip: float
    seed: int


@dataclass(frozen=True)
class Limits:
    """When to stop, whichever comes first: epochs and steps of the whole run, minutes from now."""

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
