"""The check that the public functions on a whole model share."""

from __future__ import annotations

from typing import Any

from torch import nn


def check_model(model: Any) -> None:
    """Raises TypeError where ``model`` is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
