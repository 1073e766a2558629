"""The checks of what the recurrences are given; their messages name the argument."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_gates(gates: Tensor, name: str) -> None:
    """Raise an error unless they are four gates for every pixel; ``name`` ends their name."""
    if not isinstance(gates, Tensor):
        raise TypeError(f"gates{name}: expected a Tensor; got {type(gates).__name__}")
    if gates.dim() not in (3, 4):
        raise ValueError(f"gates{name}: expected [N, 4h, H, W] or [4h, H, W]; got shape {list(gates.shape)}")
    if gates.shape[-3] == 0 or gates.shape[-3] % 4:
        raise ValueError(f"gates{name}: expected 4h channels, four gates of h; got shape {list(gates.shape)}")


def check_state(channels: int, state: Sequence[Tensor | None], name: str, taps: int) -> None:
    """Raise an error where (weight, h0, c0) do not fit 4h channels; ``name`` ends their names."""
    for kind, value in zip(("weight", "h0", "c0"), state, strict=True):
        if not isinstance(value, Tensor) and (value is not None or kind == "weight"):
            raise TypeError(f"{kind}{name}: expected a Tensor; got {type(value).__name__}")
    weight, h0, c0 = state
    wanted = [taps, channels, channels // 4]
    if weight is not None and list(weight.shape) != wanted:
        raise ValueError(f"weight{name}: expected [taps, 4h, h] = {wanted}; got shape {list(weight.shape)}")
    for kind, value in (("h0", h0), ("c0", c0)):
        if value is not None and list(value.shape) != [channels // 4]:
            raise ValueError(f"{kind}{name}: expected shape [{channels // 4}]; got {list(value.shape)}")


def check_together(named: dict[str, Tensor | None]) -> None:
    """Raise an error unless all are on one device and, outside autocast, of one floating-point dtype."""
    (leader, first), *others = named.items()
    assert first is not None
    if not first.dtype.is_floating_point:
        raise TypeError(f"{leader}: expected a floating-point dtype; got {first.dtype}")
    for name, value in others:
        if value is None:
            continue
        if value.device != first.device:
            raise ValueError(f"{name}: expected the device of {leader}, {first.device}; got {value.device}")
        if value.dtype != first.dtype and not torch.is_autocast_enabled(first.device.type):
            raise TypeError(f"{name}: expected the dtype of {leader}, {first.dtype}; got {value.dtype}")
