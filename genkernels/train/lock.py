"""Lock on a run's folder: one process at a time."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import IO

from .errors import TrainingError

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing keeps two runs apart
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


class FolderLock:
    """While active, no other lock on the folder can be had; the system frees it when the process dies.

    Raises:
        TrainingError: another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._file: IO[str] | None = None

    def __enter__(self) -> FolderLock:
        self._file = open(self._path, "w")
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._file.close()
                raise TrainingError(f"{self._path.parent}: another run is writing to this folder") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._path.unlink(missing_ok=True)
        self._file.close()
