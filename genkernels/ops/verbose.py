"""``GENKERNELS_VERBOSE=1``: says once for each operator and shape which implementation ran, and why."""

from __future__ import annotations

import os
import sys

_said: set[tuple[str, str]] = set()
_ON = os.environ.get("GENKERNELS_VERBOSE", "") not in ("", "0")


def is_on() -> bool:
    return _ON


def say(operator: str, implementation: str, reason: str, line: str) -> None:
    """Print it unless this line has been printed.

    Args:
        operator: its name.
        implementation: what runs it.
        reason: why.
        line: a Python expression with which the same call can be made again; it holds the shapes.
    """
    if not _ON or (operator, line) in _said:
        return
    _said.add((operator, line))
    print(f"genkernels: {operator}: {implementation}, {reason}; again with: {line}", file=sys.stderr)
