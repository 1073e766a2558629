"""The commands info, demo, train, sample and evaluate: options and output; the work is :mod:`genkernels.train`'s."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from ..models import AutoregressiveModel
from ..train.checkpoint import CHECKPOINT, open_model
from ..train.errors import GenkernelsError
from ..train.loop import DEFAULT_SAMPLES, Trainer
from ..train.objectives import OPTIMIZERS
from ..train.pictures import check_picture_path, save_curve, save_grids
from ..train.recipes import RECIPES
from ..train.run import resume_run, start_run
from ..train.settings import Limits
from ..version import __version__
from .demo import run_demo
from .info import show_info
from .options import Checkpoint, Data, Device, Seed, SkipBroken, device_of, size_of
from .progress import counted, progress
from .trained import complete_images, evaluation_images, given_images

DEFAULT_EPOCHS = 10

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Fast kernels for generative image models.")

# The base of what typer raises about a command line; its recent versions carry a click of their own.
_CommandLineError: type[Any] = next(t for t in typer.BadParameter.__mro__ if t.__name__ == "ClickException")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code. Errors that a user can mend are one sentence on stderr."""
    try:
        code = app(args=arguments, prog_name="genkernels", standalone_mode=False)
    except _CommandLineError as error:
        if not error.format_message():  # the bare command: typer has printed the help
            return error.exit_code
        return _fail(error.format_message(), error.exit_code)
    except GenkernelsError as error:
        return _fail(str(error), 1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    print(f"genkernels: {' '.join(message.splitlines())}", file=sys.stderr)
    return code


def _console() -> Console:
    # Without markup: what is printed holds paths and reasons, whose [brackets] and :names: are their own.
    # A file or a log is not 80 columns wide: a command broken in two would be another command.
    width = None if sys.stdout.isatty() else 1000
    return Console(highlight=False, markup=False, emoji=False, width=width)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"genkernels {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fast kernels for generative image models."""


@app.command()
def info() -> None:
    """What is installed here, what it can run on, and why something cannot."""
    show_info(_console())


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=1, help="Time to train for, at most.")] = 60,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the model.")] = Path("genkernels-demo"),
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in the folder.")] = False,
) -> None:
    """Train a PixelCNN on real digits for a minute, draw new ones, and time it against plain PyTorch."""
    run_demo(_console(), seconds, out, seed, overwrite)


@app.command()
def train(
    model: Annotated[str, typer.Argument(help=f"What to train: {', '.join(RECIPES)}.")],
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/MODEL-DATA by default.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help=f"Stop then; {DEFAULT_EPOCHS} by default.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Stop after so much training from now.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per step.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", "--learning-rate", help="Learning rate, above 0.")] = None,
    optimizer: Annotated[str | None, typer.Option(help=f"One of: {', '.join(OPTIMIZERS)}.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient, above 0.")] = None,
    levels: Annotated[int | None, typer.Option(min=2, max=256, help="Grey levels, per colour.")] = None,
    hidden_channels: Annotated[int | None, typer.Option(min=1, help="Features per layer.")] = None,
    num_layers: Annotated[int | None, typer.Option(min=0, help="Layers after the first.")] = None,
    residual: Annotated[bool | None, typer.Option("--residual/--no-residual", help="Residual blocks.")] = None,
    head_channels: Annotated[int | None, typer.Option(min=1, help="Width of two more 1x1 layers.")] = None,
    recurrence: Annotated[str | None, typer.Option(help="Of a PixelRNN: diagonal or row.")] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Condition a gated PixelCNN on the labels: how many classes there are.")
    ] = None,
    latent_dim: Annotated[int | None, typer.Option(min=1, help="Numbers in a code or latent.")] = None,
    likelihood: Annotated[str | None, typer.Option(help="Of a VAE: bernoulli, categorical or gaussian.")] = None,
    beta: Annotated[float | None, typer.Option(min=0, help="Of a VAE: weight of the divergence.")] = None,
    size: Annotated[str | None, typer.Option(help="Resize a folder's images: 32 or 32x48.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="Equal seeds give equal runs.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=0, help=f"Images to draw at the end; {DEFAULT_SAMPLES} by default.")
    ] = None,
    skip_broken: SkipBroken = False,
    device: Device = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
) -> None:
    """Train a model. Writes model.pt, history.jsonl, curve.png and pictures of its images to the run's folder."""
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    settings = {
        "data": data, "size": size_of(size), "batch_size": batch_size, "learning_rate": lr,
        "optimizer": optimizer, "clip": clip, "seed": seed,
    }  # fmt: skip
    options = {
        "levels": levels, "hidden_channels": hidden_channels, "num_layers": num_layers,
        "residual": residual, "head_channels": head_channels, "recurrence": recurrence,
        "num_classes": num_classes, "latent_dim": latent_dim, "likelihood": likelihood, "beta": beta,
    }  # fmt: skip
    settings = {name: value for name, value in settings.items() if value is not None}
    options = {name: value for name, value in options.items() if value is not None}
    place = out or Path("runs") / f"{model}-{(data or 'digits').partition(':')[0]}"
    console, where = _console(), device_of(device)
    check_picture_path(Path("samples.png"))
    if resume:
        trainer, dataset = resume_run(model, place, settings, options, device=where, skip_broken=skip_broken)
    else:
        settings.setdefault("data", "digits")
        trainer, dataset = start_run(
            model, place, settings, options, device=where, overwrite=overwrite, skip_broken=skip_broken
        )
    if samples is not None:
        trainer.samples = samples

    limits = Limits(epochs, steps, minutes)
    if limits == Limits():
        limits = trainer.limits if resume else Limits(epochs=DEFAULT_EPOCHS)
    if trainer.done(limits) >= 1:
        raise GenkernelsError(
            f"the run in {place} has reached its limit (step {trainer.step}, epoch {trainer.epoch}); "
            "give more --epochs or --steps"
        )
    console.print(
        f"{model}: {sum(p.numel() for p in trainer.model.parameters()):,} parameters, "
        f"{len(dataset.train):,} images of {dataset.name}, {trainer.objective.levels(trainer.model)} levels, on {where}"
    )
    if not _train(console, trainer, limits):
        skipping = ["--skip-broken"] if skip_broken else []
        again = shlex.join(["genkernels", "train", model, "--out", str(place), "--resume", *skipping])
        console.print(f"stopped at step {trainer.step}; {place / CHECKPOINT} holds it; go on with: {again}")
        assert trainer.stopped_by is not None
        raise typer.Exit(128 + trainer.stopped_by)
    _show_results(console, trainer, trainer.samples)


def _train(console: Console, trainer: Trainer, limits: Limits) -> bool:
    with progress(console, "training") as report:

        def on_step(done: float) -> None:
            parts = [f"step {trainer.step}"]
            for key, name in trainer.objective.curves.items():
                value = trainer.latest(key)
                parts += [] if value is None else [f"{name} {value:.4g}"]
            report(done, ", ".join(parts))

        return trainer.run(limits, on_step)


def _show_results(console: Console, trainer: Trainer, samples: int) -> None:
    folder, model, objective = trainer.folder, trainer.model, trainer.objective
    save_curve(folder / "curve.png", trainer.history, objective.curves, objective.unit)
    with counted(console, "evaluating") as step:
        measures = objective.evaluate(model, trainer.test_images, progress=step, labels=trainer.test_labels)
    if measures:
        figures = ", ".join(f"{measure} {measure.label}" for measure in measures)
        console.print(f"test: {figures}, over {measures[0].images:,} images")
    if samples:
        generator = torch.Generator().manual_seed(trainer.settings.seed)
        with counted(console, "drawing") as step:
            pictures = objective.pictures(model, trainer.test_images, samples, generator, step)
        for name, grids in pictures.items():
            save_grids(folder / f"{name}.png", grids, 256)
    console.print(f"written to {folder}")


@app.command()
def sample(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("samples.png"),
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 16,
    seed: Seed = 0,
    temperature: Annotated[float | None, typer.Option(help="Below 1 plays safe; 1 by default.")] = None,
    label: Annotated[int | None, typer.Option(min=0, help="The class to draw; all in turn by default.")] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Give the upper half of real images; draw the rest.")
    ] = False,
    data: Data = None,
    device: Device = None,
) -> None:
    """Draw images from a trained model, or complete real ones with an autoregressive one."""
    if temperature is not None and not temperature > 0:
        raise typer.BadParameter(f"--temperature: expected a number above 0; got {temperature}")
    if label is not None and complete:
        raise typer.BadParameter("--label: images to complete have classes of their own")
    if data is not None and not complete:
        raise typer.BadParameter("--data: only --complete takes images from a data set")
    check_picture_path(out)
    where, console = device_of(device), _console()
    trained = open_model(checkpoint)
    model = trained.model.to(where)
    generator = torch.Generator().manual_seed(seed)
    with counted(console, "sampling") as step:
        if complete:
            if not isinstance(model, AutoregressiveModel):
                raise GenkernelsError(
                    f"--complete: only autoregressive models complete images; not a {type(model).__name__}"
                )
            given, labels = given_images(console, trained, data, n)
            grids = complete_images(model, given, labels, generator, step, 1.0 if temperature is None else temperature)
        else:
            grids = {"samples": trained.recipe.objective.sample(model, n, generator, step, temperature, label)}
    save_grids(out, grids, 256)
    console.print(f"written to {out}")


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    data: Data = None,
    skip_broken: SkipBroken = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    importance_samples: Annotated[
        int | None, typer.Option(min=1, help="Of a VAE: codes per image for a tighter bound.")
    ] = None,
    device: Device = None,
) -> None:
    """Figures of the test images of a data set: for a likelihood, nats per image and bits per sub-pixel."""
    where, console = device_of(device), _console()
    trained = open_model(checkpoint)
    objective = trained.recipe.objective
    if objective.unmeasured is not None:
        raise GenkernelsError(objective.unmeasured)
    name, images, labels = evaluation_images(console, trained, data, skip_broken)
    with counted(console, "evaluating") as step:
        measures = objective.evaluate(trained.model.to(where), images, batch_size, step, importance_samples, labels)
    for measure in measures:
        if math.isnan(measure.mean):
            raise GenkernelsError(f"{checkpoint}: the model gives no number of {measure.label} for these images (nan)")
    table = Table("data", "images", *(measure.label for measure in measures), box=None, pad_edge=False)
    table.add_row(name, f"{measures[0].images:,}", *map(str, measures))
    console.print(table)
