"""Operators on truth values, which are 0 and 1 in a program: comparisons, logic, choices between two numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .graph import NotTraceable
from .operators import OPERATORS, pointwise, unary
from .tensor import Traced
from .tracer import Tracer

_COMPARISONS = {  # the function, and whether of b and a
    "lt": ("less", False),
    "le": ("less_equal", False),
    "gt": ("less", True),
    "ge": ("less_equal", True),
    "eq": ("equal", False),
    "ne": ("unequal", False),
}


def _compare(tracer: Tracer, a: Any, b: Any, function: str, swapped: bool) -> Traced:
    a, b = (tracer.number(t) for t in ((b, a) if swapped else (a, b)))
    return pointwise(tracer, function, a, b)


for _name, _meant in _COMPARISONS.items():
    OPERATORS.compute[f"aten::{_name}"] = lambda tracer, a, b, meant=_meant: _compare(tracer, a, b, *meant)


def _truth(tracer: Tracer, x: Any) -> Any:
    """0 and 1 for a tensor of any numbers."""
    return x if x.dtype == torch.bool else x != 0


def _bits(tracer: Tracer, *tensors: Any) -> None:
    for x in tensors:
        if not isinstance(x, bool) and not (isinstance(x, Tensor) and x.dtype == torch.bool):
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise NotTraceable(f"layer {tracer.name()!r}: {tracer.operator} on bits; of truth values alone, got {kind}")


@OPERATORS.handles("aten::bitwise_and", "aten::bitwise_or", "aten::bitwise_xor")
def _bitwise(tracer: Tracer, a: Any, b: Any) -> Traced:
    _bits(tracer, a, b)
    return _logic(tracer, *(tracer.number(t) for t in (a, b)))


@OPERATORS.handles("aten::logical_and", "aten::logical_or", "aten::logical_xor")
def _logic(tracer: Tracer, a: Tensor, b: Tensor) -> Traced:
    functions = {"and": "mul", "or": "maximum", "xor": "unequal"}
    function = functions[tracer.operator.rpartition("_")[2]]
    return pointwise(tracer, function, _truth(tracer, a), _truth(tracer, b))


@OPERATORS.handles("aten::bitwise_not")
def _bitwise_not(tracer: Tracer, x: Traced) -> Traced:
    _bits(tracer, x)
    return unary(tracer, x, "scale", -1, 1)


@OPERATORS.handles("aten::logical_not")
def _logical_not(tracer: Tracer, x: Traced) -> Any:
    return unary(tracer, x, "scale", -1, 1) if x.dtype == torch.bool else x == 0


@OPERATORS.handles("aten::where")
def _where(tracer: Tracer, condition: Any, *numbers: Any) -> Traced:
    if len(numbers) != 2:
        raise NotTraceable(
            f"layer {tracer.name()!r}: where() with a condition alone finds other places in other images"
        )
    if condition.dtype != torch.bool:
        raise NotTraceable(f"layer {tracer.name()!r}: where() takes a condition of torch.bool; got {condition.dtype}")
    return pointwise(tracer, "where", condition, *(tracer.number(t) for t in numbers))


@OPERATORS.handles("aten::masked_fill")
def _masked_fill(tracer: Tracer, x: Any, mask: Any, value: Any) -> Traced:
    return _where(tracer, mask, value, x)
