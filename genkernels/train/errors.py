"""Errors that a user causes and a user can mend: the command line prints their text, and no traceback."""

from __future__ import annotations


class GenkernelsError(Exception):
    """One sentence that says what is wrong and, where it helps, what to do."""


class DataError(GenkernelsError):
    """A data set cannot be opened: unknown, missing or damaged."""


class CheckpointError(GenkernelsError):
    """A checkpoint cannot be read, or does not belong to what it is used for."""


class TrainingError(GenkernelsError):
    """A training run cannot start, or cannot go on."""


class MissingPackageError(GenkernelsError):
    """An optional package is not installed."""

    def __init__(self, package: str, purpose: str, extra: str = "cli") -> None:
        self._arguments = (package, purpose, extra)
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'genkernels[{extra}]'")

    def __reduce__(self) -> tuple[type[MissingPackageError], tuple[str, str, str]]:
        return type(self), self._arguments  # it travels between processes
