"""The commands: options and output of all but train; the work is :mod:`genkernels.train`'s."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from ..backends import available_backends, native
from ..models import AutoregressiveModel
from ..train import processes
from ..train.checkpoint import checkpoint_in, open_model
from ..train.data.binarise import METHODS
from ..train.data.file_images import mapped
from ..train.data.sources import dequantise
from ..train.defaults import DEFAULTS
from ..train.drawing import draw
from ..train.errors import GenkernelsError
from ..train.objectives import Evaluating
from ..train.sample_metrics import LEAST_IMAGES, sample_measures
from ..version import __version__
from .coding import compress_images, decompress_images
from .demo import run_demo
from .drawn import Destination, check_file, refuse_single_points
from .figures import write_figures
from .info import show_info
from .options import Checkpoint, Data, Device, Seed, SkipBroken, device_of
from .progress import counted, make_console
from .train import train
from .trained import binarised, complete_images, evaluation_images, given_images, judge_of

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Fast kernels for generative image models.")

DRAWN = 5000  # images that a classifier judges

SHARED = ("train", "evaluate", "sample")  # the commands that several processes do together

# The base of what typer raises about a command line; its recent versions carry a click of their own.
_CommandLineError: type[Any] = next(t for t in typer.BadParameter.__mro__ if t.__name__ == "ClickException")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code. Errors that a user can mend are one sentence on stderr."""
    with processes.launched():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
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
    if processes.rank() == 0:
        print(f"genkernels: {' '.join(message.splitlines())}", file=sys.stderr)
    return code


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"genkernels {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fast kernels for generative image models."""
    if processes.count() > 1 and context.invoked_subcommand not in SHARED:
        raise typer.BadParameter(f"torchrun is for {', '.join(SHARED)}; run {context.invoked_subcommand} without it")
    cpu = available_backends()["cpu"]
    if context.invoked_subcommand != info.__name__ and native() is not None and not cpu.available:
        raise GenkernelsError(str(cpu.reason))  # the environment names no instruction set


@app.command()
def info() -> None:
    """What is installed here, what it can run on, and why something cannot."""
    show_info(make_console())


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=1, help="Time to train for, at most.")] = 60,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the model.")] = Path("genkernels-demo"),
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in the folder.")] = False,
) -> None:
    """Train a PixelCNN on real digits for a minute, draw new ones, and time it against plain PyTorch."""
    run_demo(make_console(), seconds, out, seed, overwrite)


app.command()(train)
app.command("compress")(compress_images)
app.command("decompress")(decompress_images)


@app.command()
def defaults() -> None:
    """Defaults of train by model and data set, where a paper or a run gives a number, and which."""
    table = Table("model", "data", "settings", "source", box=None, pad_edge=False)
    for row in DEFAULTS:
        values = ", ".join(f"{name} {value}" for name, value in {**row.settings, **row.model}.items())
        table.add_row(row.recipe, row.data or "any", values, row.source)
    make_console().print(table)


@app.command()
def sample(
    checkpoint: Checkpoint,
    out: Annotated[
        str, typer.Option(help="A picture of all; FOLDER/ for one each; NAME.npy for uint8 [n, H, W, C].")
    ] = "samples.png",
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
    if complete and processes.count() > 1:
        raise typer.BadParameter("--complete: run it without torchrun")
    where, console = device_of(device), make_console()
    destination = processes.together(lambda: Destination(out))
    trained = processes.together(lambda: open_model(checkpoint))
    model = trained.model.to(where)
    refuse_single_points(destination, model)
    with counted(console, "sampling") as step:
        if complete:
            if not isinstance(model, AutoregressiveModel):
                raise GenkernelsError(
                    f"--complete: only autoregressive models complete images; not a {type(model).__name__}"
                )
            real, generator = given_images(console, trained, data, n), torch.Generator().manual_seed(seed)
            grids = complete_images(model, real, generator, step, 1.0 if temperature is None else temperature)
        else:
            grids = {
                "samples": draw(trained.objective, model, n, seed, progress=step, temperature=temperature, label=label)
            }
    processes.first_does(lambda: destination.write(grids, "completed" if complete else "samples"))
    console.print(f"written to {out}")


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    data: Data = None,
    skip_broken: SkipBroken = False,
    binarize: Annotated[
        str | None, typer.Option(help=f"How images get two levels, as in the run by default: {', '.join(METHODS)}.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    importance_samples: Annotated[
        int | None, typer.Option(min=1, help="Of a VAE: codes per image for a tighter bound.")
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option(
            help="A run of train classifier: judge drawn images by it instead, by Inception score and Fréchet distance."
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=LEAST_IMAGES, help=f"How many images to draw for it; {DRAWN} by default.")
    ] = None,
    seed: Seed = 0,
    json: Annotated[
        Path | None, typer.Option(help="Write the figures to this file, too, with what they are of.")
    ] = None,
    device: Device = None,
) -> None:
    """Figures of the test images of a data set: for a likelihood, nats per image and bits per sub-pixel."""
    if classifier is None and samples is not None:
        raise typer.BadParameter("--samples: only --classifier draws images")
    if classifier is not None and importance_samples is not None:
        raise typer.BadParameter("--importance-samples and --classifier exclude each other")
    where, console = device_of(device), make_console()
    if json is not None:
        check_file(json)
    trained = processes.together(lambda: open_model(checkpoint))
    objective, model = trained.objective, trained.model.to(where)
    found = processes.together(lambda: evaluation_images(console, trained, data, skip_broken, binarize))
    if classifier is None:
        with counted(console, "evaluating") as step:
            measures = objective.evaluate(model, found.test, Evaluating(batch_size, step, importance_samples))
        if not measures:
            assert objective.unmeasured is not None
            raise GenkernelsError(objective.unmeasured)
    else:
        judge = processes.together(lambda: judge_of(classifier, model, found)).to(where)
        with counted(console, "drawing") as step:
            drawn = draw(objective, model, samples or DRAWN, seed, progress=step)
        with counted(console, "judging") as step:
            real = mapped(found.test.images, partial(dequantise, levels=objective.levels(model)))
            measures = sample_measures(judge, drawn, real, batch_size, step)
    for measure in measures:
        if math.isnan(measure.mean):
            raise GenkernelsError(f"{checkpoint}: the model gives no number of {measure.label} for these images (nan)")
    what = "points" if found.test.mixture is not None else "images" if classifier is None else "images drawn"
    table = Table("data", what, *(measure.label for measure in measures), box=None, pad_edge=False)
    table.add_row(found.name + binarised(found.binarize), f"{measures[0].images:,}", *map(str, measures))
    console.print(table)
    if json is not None:
        file = checkpoint_in(checkpoint)
        judged_by = None if classifier is None else checkpoint_in(classifier)
        processes.first_does(lambda: write_figures(json, file, trained, found, measures, judged_by))
        console.print(f"written to {json}")
