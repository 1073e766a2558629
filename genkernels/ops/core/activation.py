"""The activations behind a convolution or a norm: names, the function and its slope in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh", "sigmoid")
"""In the order of the native kernels' codes."""


class Activation(NamedTuple):
    name: str  # of ACTIVATIONS
    negative_slope: float  # of "leaky_relu"


def check_activation(activation: str | None, negative_slope: float) -> None:
    """Raise a ValueError that names the argument that does not fit."""
    if activation is not None and (activation == "none" or activation not in ACTIVATIONS):
        expected = ", ".join(repr(name) for name in ACTIVATIONS[1:])
        raise ValueError(f"activation: expected None, {expected}; got {activation!r}")
    if not negative_slope >= 0:
        raise ValueError(f"negative_slope: expected at least 0; got {negative_slope!r}")


def act(u: Tensor, activation: str, negative_slope: float) -> Tensor:
    if activation == "relu":
        return u.relu()
    if activation == "leaky_relu":
        return F.leaky_relu(u, negative_slope)
    return {"none": lambda: u, "tanh": u.tanh, "sigmoid": u.sigmoid}[activation]()


def slope_at(y: Tensor, activation: str, negative_slope: float) -> Tensor:
    """The derivative of the activation where its result is y."""
    if activation == "tanh":
        return 1 - y * y
    if activation == "sigmoid":
        return y * (1 - y)
    below = {"relu": 0.0, "leaky_relu": negative_slope}[activation]
    return torch.where(y > 0, y.new_ones(()), y.new_full((), below))
