"""Checks of what the public functions are given; their messages name the argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..masked_conv.functional import check_tensors

Tensors = Mapping[str, Any]  # tensors or None by the names of the public functions, in the order of the operators


def check_recurrence(tensors: Tensors, gates: Sequence[str], taps: int) -> None:
    """Raise an error unless the tensors of a recurrence fit; ``gates`` are the names of those of each direction."""
    for name in gates:
        _check_gates(tensors[name], name)
        _check_state(tensors[name].shape[-3], tensors, name.removeprefix("gates"), taps)
    first, last = list(tensors[gates[0]].shape), list(tensors[gates[-1]].shape)
    if last != first:
        raise ValueError(f"{gates[-1]}: expected the shape of {gates[0]}, {first}; got {last}")
    _check_together(tensors)


def check_layer(tensors: Tensors, ends: Sequence[str], taps: int) -> None:
    """Raise an error unless the tensors of a layer fit; ``ends`` are those of the names of each direction."""
    x = tensors["x"]
    for end in ends:
        weight = tensors[f"input_weight{end}"]
        check_tensors(x, weight, tensors[f"input_bias{end}"], 1, "input_", end)
        channels = weight.shape[0]
        if channels == 0 or channels % 4:
            raise ValueError(
                f"input_weight{end}: expected [4h, C, kh, kw], four gates of h; got shape {list(weight.shape)}"
            )
        _check_state(channels, tensors, end, taps)
    _check_together(tensors)
    first, last = (list(tensors[f"input_weight{end}"].shape) for end in (ends[0], ends[-1]))
    if last != first:
        raise ValueError(f"input_weight{ends[-1]}: expected the shape of input_weight{ends[0]}, {first}; got {last}")


def _check_gates(gates: Any, name: str) -> None:
    """Raise an error unless they are four gates for every pixel."""
    if not isinstance(gates, Tensor):
        raise TypeError(f"{name}: expected a Tensor; got {type(gates).__name__}")
    if gates.dim() not in (3, 4):
        raise ValueError(f"{name}: expected [N, 4h, H, W] or [4h, H, W]; got shape {list(gates.shape)}")
    if gates.shape[-3] == 0 or gates.shape[-3] % 4:
        raise ValueError(f"{name}: expected 4h channels, four gates of h; got shape {list(gates.shape)}")


def _check_state(channels: int, tensors: Tensors, end: str, taps: int) -> None:
    """Raise an error where weight, h0 and c0 do not fit 4h channels; ``end`` ends their names."""
    weight, h0, c0 = tensors[f"weight{end}"], tensors[f"h0{end}"], tensors[f"c0{end}"]
    for kind, value in (("weight", weight), ("h0", h0), ("c0", c0)):
        if not isinstance(value, Tensor) and (value is not None or kind == "weight"):
            raise TypeError(f"{kind}{end}: expected a Tensor; got {type(value).__name__}")
    expected = [taps, channels, channels // 4]
    if list(weight.shape) != expected:
        raise ValueError(f"weight{end}: expected [taps, 4h, h] = {expected}; got shape {list(weight.shape)}")
    for kind, value in (("h0", h0), ("c0", c0)):
        if value is not None and list(value.shape) != [channels // 4]:
            raise ValueError(f"{kind}{end}: expected shape [{channels // 4}]; got {list(value.shape)}")


def _check_together(tensors: Tensors) -> None:
    """Raise an error unless all are on one device and, outside autocast, of one floating-point dtype."""
    (leader, first), *others = tensors.items()
    if not first.dtype.is_floating_point:
        raise TypeError(f"{leader}: expected a floating-point dtype; got {first.dtype}")
    for name, value in others:
        if value is None:
            continue
        if value.device != first.device:
            raise ValueError(f"{name}: expected the device of {leader}, {first.device}; got {value.device}")
        if value.dtype != first.dtype and not torch.is_autocast_enabled(first.device.type):
            raise TypeError(f"{name}: expected the dtype of {leader}, {first.dtype}; got {value.dtype}")
