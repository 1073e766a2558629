"""``genkernels demo``: a PixelCNN trained on digits for a minute, pictures of its samples, and timings."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..models import PixelCNN
from ..train.checkpoint import CHECKPOINT
from ..train.compare import Comparison, compare_with_plain
from ..train.errors import TrainingError
from ..train.metrics import evaluate
from ..train.pictures import check_picture_path, save_curve, save_grids
from ..train.run import start_run
from ..train.settings import Limits
from .progress import counted, progress

EPOCHS = 40  # a minute on two cores; a quicker machine would go on to learn these few digits by heart


def run_demo(console: Console, seconds: float, out: Path, seed: int, overwrite: bool) -> None:
    """Train on the digits, write the model, its history and two pictures to ``out``, and print timings.

    Raises:
        GenkernelsError: ``out`` holds a run and ``overwrite`` is not set, or a package is missing.
        KeyboardInterrupt: Ctrl-C; what is trained so far is saved.
    """
    check_picture_path(Path("samples.png"))
    if (out / CHECKPOINT).exists() and not overwrite:  # start_run would offer --resume, which a demo does not have
        raise TrainingError(f"{out} holds a run already: replace it with --overwrite, or name another with --out")
    trainer, dataset = start_run("pixelcnn", out, {"data": "digits", "seed": seed}, {}, overwrite=overwrite)
    model, train, test = trainer.model, trainer.train.images[:], trainer.test.images[:]
    assert isinstance(model, PixelCNN)
    console.print(
        f"A PixelCNN ({sum(p.numel() for p in model.parameters()):,} parameters) learns to draw from "
        f"{len(train):,} handwritten 8 x 8 digits, for at most {seconds:.0f} s."
    )
    before = evaluate(model, test)
    with progress(console, "training") as report:

        def on_step(done: float) -> None:
            nats = trainer.latest("train_nats")
            report(done, f"step {trainer.step}" + ("" if nats is None else f", {nats:.1f} nats per image"))

        if not trainer.run(Limits(epochs=EPOCHS, minutes=seconds / 60), on_step):
            raise KeyboardInterrupt
    after = evaluate(model, test)
    console.print(
        f"{len(test)} digits it never saw: {before.nats:.1f} nats per image before, {after.nats:.1f} after "
        f"({after.bits_per_dim:.2f} bits per pixel)."
    )
    with counted(console, "sampling") as step:
        drawn = model.sample(64, generator=torch.Generator().manual_seed(seed), progress=step)
    save_grids(out / "samples.png", {"drawn by the model": drawn, "real": test[:64]}, dataset.levels)
    save_curve(out / "curve.png", trainer.history, trainer.objective.curves, trainer.objective.unit)
    console.print(f"written to {out}: samples.png, curve.png, model.pt, history.jsonl\n")
    _show_timings(console, compare_with_plain(model, train[: trainer.settings.batch_size]))


def _show_timings(console: Console, rows: list[Comparison]) -> None:
    threads, rounds = torch.get_num_threads(), min(row.rounds for row in rows)
    table = Table("", "ours", "plain PyTorch", "", box=None, pad_edge=False)
    for row in rows:
        if row.speedup >= 1:
            factor = Text(f"{row.speedup:.2f}x faster", style="green")
        else:
            factor = Text(f"{1 / row.speedup:.2f}x slower", style="red")
        table.add_row(row.what, f"{row.ours * 1e3:.1f} ms", f"{row.plain * 1e3:.1f} ms", factor)
    console.print(table)
    console.print(
        f"Medians of at least {rounds} interleaved rounds just now, on {threads} threads. "
        "Both sides have the same weights and batch; their outputs and gradients were compared first. Plain "
        "PyTorch samples with one full forward pass per pixel, ours with what a whole image needs once."
    )
