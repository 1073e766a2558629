"""Checks of arguments that the public functions share."""

from __future__ import annotations

from typing import Any

from torch import nn


def check_model(model: Any) -> None:
    """Raises TypeError where ``model`` is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise a ValueError unless value is an int in low .. high."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        wanted = f"of at least {low}" if high is None else f"in {low} .. {high}"
        raise ValueError(f"{name}: expected a whole number {wanted}; got {value!r}")
