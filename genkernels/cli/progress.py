"""Output of a command, and its progress: a moving bar on a terminal, now and then a line anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..train import processes

LINE_SECONDS = 10.0

Report = Callable[[float, str], None]


def make_console() -> Console:
    """Standard output, of the first process."""
    # Without markup: what is printed holds paths and reasons, whose [brackets] and :names: are their own.
    # A file or a log is not 80 columns wide: a command broken in two would be another command.
    width = None if sys.stdout.isatty() else 1000
    return Console(highlight=False, markup=False, emoji=False, width=width, quiet=processes.rank() > 0)


@contextmanager
def progress(console: Console, label: str) -> Iterator[Report]:
    """Yields ``report(done, text)``: done is 0 .. 1, text is shown beside it, such as the loss."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(label, total=1.0, text="")
            yield lambda done, text: bar.update(task, completed=done, text=text)
        return

    began = time.monotonic()
    last = began

    def report(done: float, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= 1 or now - last >= LINE_SECONDS:
            last = now
            console.print(f"{label}: {done:4.0%} after {now - began:.0f} s  {text}", highlight=False)

    yield report


@contextmanager
def counted(console: Console, label: str) -> Iterator[Callable[[int, int], None]]:
    """Yields ``step(done, total)``, which the models' and metrics' ``progress`` arguments take."""
    with progress(console, label) as report:
        yield lambda done, total: report(done / total, "")
