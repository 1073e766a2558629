"""The command ``genkernels``.

app.py         its commands: info, demo, defaults, sample, evaluate, and those below
train.py       genkernels train
train_options.py  its options
options.py     options that several commands take
drawn.py       drawn images as files: a grid, a folder, an array
figures.py     figures of an evaluation as a JSON file
trained.py     a trained model with the images of a data set
coding.py      genkernels compress, decompress
demo.py        genkernels demo
info.py        genkernels info
progress.py    output, and progress on a terminal or in a log
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from ..allocator import keep_freed_memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (None for the process's own) and return the exit code; what went wrong is on stderr.

    0 done, 1 it could not be done, 2 the command line makes no sense, 130 ended by Ctrl-C, 143 by SIGTERM.
    """
    missing = [package for package in ("typer", "rich") if importlib.util.find_spec(package) is None]
    if missing:
        print(
            f"genkernels: the command line needs {' and '.join(missing)}: pip install 'genkernels[cli]'",
            file=sys.stderr,
        )
        return 1
    keep_freed_memory()
    from .app import run

    return run(arguments)
