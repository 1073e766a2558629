"""The command train: a run as its options describe it, and its results."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from ..train import processes
from ..train.checkpoint import CHECKPOINT
from ..train.data.file_images import FileImages
from ..train.errors import GenkernelsError
from ..train.loop import Trainer
from ..train.objectives import Drawing, Evaluating
from ..train.pictures import check_picture_path, save_curve, save_grids
from ..train.recipes import RECIPES
from ..train.run import resume_run, start_run
from ..train.settings import Limits
from .options import device_of, size_of
from .progress import counted, make_console, progress
from .train_options import DATA, DEFAULT_EPOCHS, MODEL, OBJECTIVE, OPTIMISATION, given, with_options
from .trained import binarised


@with_options
def train(
    model: Annotated[str, typer.Argument(help=f"What to train: {', '.join(RECIPES)}.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
    **options: Any,
) -> None:
    """Train a model. Writes model.pt, best.pt, history.jsonl, curve.png and pictures to the folder of the run."""
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    data, out, skip_broken = options["data"], options["out"], options["skip_broken"]
    settings = given(options, DATA, OPTIMISATION) | ({} if data is None else {"data": data})
    if "size" in settings:
        settings["size"] = size_of(settings["size"])
    model_options, objective_options = given(options, MODEL), given(options, OBJECTIVE)
    place = out or Path("runs") / f"{model}-{(data or 'digits').partition(':')[0]}"
    console, where = make_console(), device_of(options["device"])
    check_picture_path(Path("samples.png"))
    limits = Limits(options["epochs"], options["steps"], options["minutes"])
    if limits == Limits() and not resume:
        limits = Limits(epochs=DEFAULT_EPOCHS)
    if resume:
        trainer, dataset = resume_run(
            model, place, settings, model_options, objective_options, device=where, skip_broken=skip_broken
        )
    else:
        trainer, dataset = start_run(
            model, place, {"data": "digits", **settings}, model_options, objective_options,
            limits=limits, device=where, overwrite=overwrite, skip_broken=skip_broken,
        )  # fmt: skip
    for name in ("samples", "images_every", "tensorboard"):
        if options[name] is not None:
            setattr(trainer, name, options[name])
    if options["workers"] is not None:
        if not isinstance(trainer.train.images, FileImages):
            raise GenkernelsError(f"workers: the images of {dataset.name} are in memory; nothing is left to decode")
        trainer.batches.workers = options["workers"]
    if limits == Limits():
        limits = trainer.limits
    if trainer.done(limits) >= 1:
        raise GenkernelsError(
            f"the run in {place} has reached its limit (step {trainer.step}, epoch {trainer.epoch}); "
            "give more --epochs or --steps"
        )
    levels = f"{trainer.objective.levels(trainer.model)} levels{binarised(trainer.settings.binarize)}, "
    console.print(
        f"{model}: {sum(p.numel() for p in trainer.model.parameters()):,} parameters, {len(dataset.train):,} "
        + (f"images of {dataset.name}, {levels}" if dataset.mixture is None else f"points of {dataset.name}, ")
        + f"on {where}"
        + (f" and {processes.count() - 1} more" if processes.count() > 1 else "")
    )
    if not _run(console, trainer, limits):
        skipping = ["--skip-broken"] if skip_broken else []
        again = shlex.join(["genkernels", "train", model, "--out", str(place), "--resume", *skipping])
        console.print(f"stopped at step {trainer.step}; {place / CHECKPOINT} holds it; go on with: {again}")
        assert trainer.stopped_by is not None
        raise typer.Exit(128 + trainer.stopped_by)
    _show_results(console, trainer, trainer.samples)


def _run(console: Console, trainer: Trainer, limits: Limits) -> bool:
    with progress(console, f"training{binarised(trainer.settings.binarize)}") as report:

        def on_step(done: float) -> None:
            parts = [f"step {trainer.step}"]
            for key, name in trainer.objective.curves.items():
                value = trainer.latest(key)
                parts += [] if value is None else [f"{name} {value:.4g}"]
            report(done, ", ".join(parts))

        return trainer.run(limits, on_step)


def _show_results(console: Console, trainer: Trainer, samples: int) -> None:
    objective = trainer.objective
    with counted(console, "evaluating") as step:
        measures = objective.evaluate(trainer.result, trainer.test, Evaluating(progress=step))
    if measures:
        figures = ", ".join(f"{measure} {measure.label}" for measure in measures)
        what = "images" if trainer.test.mixture is None else "points"
        console.print(f"test: {figures}, over {measures[0].images:,} {what}{binarised(trainer.settings.binarize)}")
    processes.first_does(lambda: _draw(console, trainer, samples))
    console.print(f"written to {trainer.folder}")


def _draw(console: Console, trainer: Trainer, samples: int) -> None:
    folder, objective = trainer.folder, trainer.objective
    unit = objective.unit + binarised(trainer.settings.binarize)
    save_curve(folder / "curve.png", trainer.history, objective.curves, unit)
    if samples:
        generator = torch.Generator().manual_seed(trainer.settings.seed)
        with counted(console, "drawing") as step:
            pictures = objective.pictures(trainer.result, trainer.test, samples, Drawing(generator, step))
        for name, grids in pictures.items():
            save_grids(folder / f"{name}.png", grids, 256)
