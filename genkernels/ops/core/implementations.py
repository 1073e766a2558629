"""Which of the native CPU implementations of an operation runs: seen, and forced by tests and measurements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ... import backends


def last() -> str:
    """The implementation that this thread's last native call took: a name from csrc/cpu/<operation>/dispatch.cpp."""
    return backends.require_native().last_implementation()


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Let every operation that has an implementation of this name try it first. It holds for the whole process."""
    native = backends.require_native()
    native.force_implementation(name)
    try:
        yield
    finally:
        native.force_implementation(None)
