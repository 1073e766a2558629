"""``GENKERNELS_VERBOSE=1``: says once for each operator and shape which implementation ran, and why."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_said: set[tuple[str, str]] = set()
_ON = os.environ.get("GENKERNELS_VERBOSE", "") not in ("", "0")
_SILENT = ContextVar("silent", default=False)  # of a thread: what others do is still said


def is_on() -> bool:
    return _ON and not _SILENT.get()


@contextmanager
def silent() -> Iterator[None]:
    """For calls that are trials."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def like(tensor: Tensor | None) -> str:
    """A Python expression for a tensor of this shape, dtype, device and layout."""
    if tensor is None:
        return "None"
    options = f", dtype={tensor.dtype}" + ("" if tensor.is_cpu else f", device={str(tensor.device)!r}")
    is_last = tensor.dim() == 4 and not tensor.is_contiguous()
    is_last = is_last and tensor.is_contiguous(memory_format=torch.channels_last)
    return f"torch.randn({list(tensor.shape)}{options})" + (".to(memory_format=torch.channels_last)" if is_last else "")


def log_choice(operator: str, implementation: str, reason: str, line: str) -> None:
    """Print it unless this line has been printed.

    Args:
        operator: its name.
        implementation: what runs it.
        reason: why.
        line: a Python expression with which the same call can be made again; it holds the shapes.
    """
    if not is_on() or (operator, line) in _said:
        return
    _said.add((operator, line))
    print(f"genkernels: {operator}: {implementation}, {reason}; again with: {line}", file=sys.stderr)
