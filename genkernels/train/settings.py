"""Settings and limits of a training run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Everything that decides the course of a run, and so must stay as it was when it is resumed.

    Attributes:
        data: specification of the data set; ``size``, ``crop`` and ``grey`` as
            :func:`genkernels.train.data.sources.open_dataset` takes them.
        batch_size: images per step; the last batch of an epoch may be smaller.
        learning_rate, optimizer: a name of ``OPTIMIZERS``, its other constants as the family's objective has them.
        clip: largest norm of the gradient of the loss (of nats per sub-pixel, for a likelihood); infinity for none.
        seed: of the initial weights, the order of the images and everything else that is random.
        flip: turn training images left to right at random.
        binarize: of a model of two levels, how images get them: a name of ``METHODS``; None otherwise.
        discriminator_learning_rate: of an adversarial run; None for that of the generator.
        weight_decay: as the optimiser has it: of "adamw" decoupled, of the others added to the gradient.
        schedule: a name of ``SCHEDULES``, how the learning rate falls over ``schedule_steps``.
        schedule_steps: steps of the whole run, warm-up included; None for a constant rate.
        warmup: steps over which the learning rate rises to its full size.
        micro_batches: in how many parts a step computes its gradient, to hold the features of one part at a time.
        ema: decay of the running average of the weights that is evaluated, drawn from and kept; 0 for none. Over the
            first t steps it is at most (1 + t) / (10 + t).
        precision: of a step's features, "float32" or "bfloat16" (autocast); weights and likelihoods stay float32.
    """

    data: str
    size: tuple[int, int] | None
    batch_size: int
    learning_rate: float
    optimizer: str
    clip: float
    seed: int
    crop: int | None = None
    grey: bool = False
    flip: bool = False
    binarize: str | None = None
    discriminator_learning_rate: float | None = None
    weight_decay: float = 0.0
    schedule: str = "constant"
    schedule_steps: int | None = None
    warmup: int = 0
    micro_batches: int = 1
    ema: float = 0.0
    precision: str = "float32"


@dataclass(frozen=True)
class Limits:
    """When to stop, whichever comes first: epochs and steps of the whole run, minutes from now."""

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
