"""Ctrl-C and SIGTERM as requests, so that a training step is never left half done."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class InterruptRequest:
    """While active, the first Ctrl-C or SIGTERM (from Slurm, Kubernetes, timeout) sets ``requested``.

    The second Ctrl-C raises KeyboardInterrupt as usual, the second SIGTERM ends the process.

    Signals reach the main thread alone: in another thread this does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None  # the number of the first one
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> InterruptRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.signal = number
