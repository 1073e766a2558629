"""Options of the command train, one line each: what they are called, what they take, and whose they are.

An option that is not given is None, and the recipe's or the constructor's own default holds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..distributions import DISTRIBUTIONS
from ..train.data.binarise import METHODS
from ..train.data.file_images import DEFAULT_WORKERS
from ..train.loop import DEFAULT_SAMPLES
from ..train.objectives.adversarial_losses import LOSSES
from ..train.optimization import OPTIMIZERS, PRECISIONS
from ..train.schedule import SCHEDULES
from .options import Data, Device, SkipBroken

DEFAULT_EPOCHS = 10

# Whose an option is, and its heading in --help.
DATA, MODEL, OBJECTIVE, OPTIMISATION, RUN = "Data", "Model", "Objective", "Optimisation", "Run"


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        heading: DATA and OPTIMISATION for a field of :class:`genkernels.train.Settings`, MODEL for an argument of the
            model's constructor, OBJECTIVE for a field of the objective, RUN for the command itself.
        name: of that field or argument; on the command line with dashes.
        kind: int, float, str, bool or Path; a bool is a flag, with a --no- form.
        help: one line for people.
        low, high: of a number.
        flags: other names on the command line.
    """

    heading: str
    name: str
    kind: type
    help: str
    low: float | None = None
    high: float | None = None
    flags: tuple[str, ...] = ()

    def parameter(self) -> inspect.Parameter:
        """The parameter that typer makes an option of."""
        option = typer.Option(
            *self.flags, help=self.help, min=self.low, max=self.high, rich_help_panel=self.heading, show_default=False
        )
        annotation: Any = Annotated.__class_getitem__((self.kind | None, option))  # type: ignore[attr-defined]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


OPTIONS = (
    Option(DATA, "size", str, "Resize the images: 32 or 32x48."),
    Option(DATA, "crop", int, "Side of a square that is cut out first: at random in training, else in the middle.", 1),
    Option(DATA, "grey", bool, "Make colours grey."),
    Option(DATA, "flip", bool, "Turn training images left to right at random. Not for digits."),
    Option(DATA, "binarize", str, f"How images get two levels, one of: {', '.join(METHODS)}."),
    Option(MODEL, "levels", int, "Grey levels, per colour.", 2, 256),
    Option(MODEL, "hidden_channels", int, "Features per layer.", 1),
    Option(MODEL, "num_layers", int, "Layers after the first.", 0),
    Option(MODEL, "residual", bool, "Residual blocks."),
    Option(MODEL, "head_channels", int, "Width of two more 1x1 layers.", 1),
    Option(MODEL, "recurrence", str, "Of a PixelRNN: diagonal or row."),
    Option(MODEL, "distribution", str, f"Of a pixel's levels, one of: {', '.join(DISTRIBUTIONS)}."),
    Option(MODEL, "mixtures", int, "Components of a logistic mixture; 10 by default.", 1, 128),
    Option(MODEL, "num_classes", int, "Condition on the labels: how many classes there are.", 1),
    Option(MODEL, "latent_dim", int, "Numbers in a code or latent.", 1),
    Option(MODEL, "likelihood", str, "Of a VAE: bernoulli, categorical or gaussian."),
    Option(MODEL, "beta", float, "Of a VAE: weight of the divergence.", 0),
    Option(MODEL, "pixelcnn_channels", int, "Of a PixelVAE: features of its decoder's PixelCNN.", 1),
    Option(MODEL, "discriminator_norm", str, "Of a DCGAN: batch or none."),
    Option(MODEL, "minibatch_kernels", int, "Of a GAN: features of minibatch discrimination.", 0),
    Option(MODEL, "spectral_norm", bool, "Of a GAN: normalise the discriminator's weights."),
    Option(OBJECTIVE, "loss", str, f"Of a GAN, one of: {', '.join(LOSSES)}."),
    Option(OBJECTIVE, "label_smoothing", float, "Of a GAN: real images count as so much less than 1.", 0),
    Option(OBJECTIVE, "critic_steps", int, "Of a GAN: the discriminator's steps for one of the generator.", 1),
    Option(OBJECTIVE, "gradient_penalty", float, "Of a GAN: weight of WGAN-GP's penalty, such as 10.", 0),
    Option(OBJECTIVE, "r1", float, "Of a GAN: weight of the gradient penalty at real images.", 0),
    Option(OBJECTIVE, "feature_matching", float, "Of a GAN: weight of the distance of mean features.", 0),
    Option(OBJECTIVE, "historical_averaging", float, "Of a GAN: weight of the distance to past weights.", 0),
    Option(OBJECTIVE, "kl_warmup", int, "Of a VAE: steps over which the weight of the divergence rises.", 0),
    Option(OBJECTIVE, "free_bits", float, "Of a VAE: nats of divergence per latent that cost nothing.", 0),
    Option(OPTIMISATION, "batch_size", int, "Images per step.", 1),
    Option(OPTIMISATION, "learning_rate", float, "Above 0.", flags=("--lr", "--learning-rate")),
    Option(OPTIMISATION, "optimizer", str, f"One of: {', '.join(OPTIMIZERS)}."),
    Option(OPTIMISATION, "clip", float, "Largest norm of the gradient, above 0."),
    Option(OPTIMISATION, "discriminator_learning_rate", float, "Of a GAN; that of the generator by default.",
           flags=("--discriminator-lr",)),
    Option(OPTIMISATION, "weight_decay", float, "As the optimiser has it.", 0),
    Option(OPTIMISATION, "schedule", str, f"Of the learning rate, one of: {', '.join(SCHEDULES)}."),
    Option(OPTIMISATION, "warmup", int, "Steps over which the learning rate rises.", 0),
    Option(OPTIMISATION, "micro_batches", int, "Parts of a batch, one after the other in memory.", 1,
           flags=("--accumulate",)),
    Option(OPTIMISATION, "ema", float, "Decay of the average of the weights that is kept, such as 0.999.", 0, 1),
    Option(OPTIMISATION, "precision", str, f"Of features, one of: {', '.join(PRECISIONS)}."),
    Option(OPTIMISATION, "seed", int, "Equal seeds give equal runs.", 0, 2**31 - 1),
    Option(RUN, "out", Path, "Folder of the run; runs/MODEL-DATA by default."),
    Option(RUN, "epochs", int, f"Stop then; {DEFAULT_EPOCHS} by default.", 1),
    Option(RUN, "steps", int, "Stop after so many steps.", 1),
    Option(RUN, "minutes", float, "Stop after so much training from now.", 0.01),
    Option(RUN, "workers", int, f"Processes that decode images too large for memory; {DEFAULT_WORKERS} by default.", 0),
    Option(RUN, "samples", int, f"Images to draw at the end; {DEFAULT_SAMPLES} by default.", 0),
    Option(RUN, "images_every", int, "Draw images after every so many epochs, too: samples-EPOCH.png.", 1),
    Option(RUN, "tensorboard", bool, "Write the history and these images for TensorBoard, too."),
)  # fmt: skip


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a parameter for each option, whose value it finds in its ``**options``.

    Those that other commands have too, data, skip_broken and device, are among them.
    """
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind != p.VAR_KEYWORD]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, default, annotation in (
            ("data", None, Data),
            ("skip_broken", False, SkipBroken),
            ("device", None, Device),
        )
    ]
    parameters = [*own, *shared, *(option.parameter() for option in OPTIONS)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def given(options: dict[str, Any], *headings: str) -> dict[str, Any]:
    """Of the options under these headings those that the command line has."""
    names = [option.name for option in OPTIONS if option.heading in headings]
    return {name: options[name] for name in names if options[name] is not None}
