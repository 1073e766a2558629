"""Autocast: an operator's inputs cast before it runs, as PyTorch's own convolutions cast theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .torch_internals import AUTOCAST_KEYS, excluding, name_of

Cast = Callable[..., Sequence[Any]]


def autocast_is_on(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """In this dtype; float64, tensors of whole numbers and what is no tensor stay, as PyTorch has it."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value


def register_autocast(
    library: torch.library.Library, op: Any, call: Callable[..., Any], cast_inputs: Cast, *,
    device_types: Sequence[str] = tuple(AUTOCAST_KEYS),
) -> None:  # fmt: skip
    """Give an operator its autocast kernels.

    Args:
        library: in which op was defined.
        op: the operator overload.
        call: the operator as it is called from Python.
        cast_inputs: (dtype that autocast asks for, *inputs) -> the inputs to call it with.
    """
    for device_type in device_types:
        key = AUTOCAST_KEYS[device_type]

        def kernel(*inputs: Any, device_type: str = device_type, key: Any = key) -> Any:
            values = cast_inputs(torch.get_autocast_dtype(device_type), *inputs)
            with excluding(key):
                return call(*values)

        library.impl(name_of(op).removeprefix("genkernels::"), kernel, key.name)
