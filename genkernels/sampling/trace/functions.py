"""Operators that are functions of numbers, channel by channel, beside the usual activations of operators.py.

What is made of other operators here is what PyTorch has a kernel of its own for, so that it does not arrive in parts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .graph import NotTraceable
from .operators import OPERATORS, pointwise, unary
from .tensor import Traced
from .tracer import Tracer

_SAME_NAME = ("abs", "sign", "sqrt", "rsqrt", "log", "log1p", "expm1", "sin", "cos", "erf")
for _name in _SAME_NAME:
    OPERATORS.compute[f"aten::{_name}"] = lambda tracer, x, name=_name: unary(tracer, x, name)
OPERATORS.compute["aten::sgn"] = OPERATORS.compute["aten::sign"]


@OPERATORS.handles("aten::maximum", "aten::minimum")
def _extreme(tracer: Tracer, a: Any, b: Any) -> Traced:
    return pointwise(tracer, tracer.operator.removeprefix("aten::"), a, b)


@OPERATORS.handles("aten::pow")
def _pow(tracer: Tracer, x: Any, exponent: Any) -> Any:
    """Of a number and a tensor, in either order, or of two tensors; small powers as PyTorch takes them."""
    if isinstance(exponent, (int, float)):
        if exponent in (2, 3):
            return x * x if exponent == 2 else x * x * x
        if exponent in (0.5, -0.5):
            return x.sqrt() if exponent > 0 else x.rsqrt()
        if exponent == 1:
            return x.clone()
    return pointwise(tracer, "power", *(tracer.number(t) for t in (x, exponent)))


@OPERATORS.handles("aten::addcmul")
def _addcmul(tracer: Tracer, x: Any, a: Any, b: Any, value: float = 1) -> Any:
    return x + (a * b if value == 1 else a * b * value)


@OPERATORS.handles("aten::addcdiv")
def _addcdiv(tracer: Tracer, x: Any, a: Any, b: Any, value: float = 1) -> Any:
    return x + (a / b if value == 1 else a / b * value)


@OPERATORS.handles("aten::lerp")
def _lerp(tracer: Tracer, start: Any, end: Any, weight: Any) -> Any:
    return start + weight * (end - start)


# --- activations ------------------------------------------------------------------------------------------------


@OPERATORS.handles("aten::log_sigmoid_forward")
def _log_sigmoid(tracer: Tracer, x: Traced) -> tuple[Tensor, None]:
    return x.clamp(max=0) - (-x.abs()).exp().log1p(), None


@OPERATORS.handles("aten::_prelu_kernel")
def _prelu(tracer: Tracer, x: Traced, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * slope)


@OPERATORS.handles("aten::mish")
def _mish(tracer: Tracer, x: Traced) -> Tensor:
    return x * F.softplus(x).tanh()


@OPERATORS.handles("aten::hardsigmoid")
def _hardsigmoid(tracer: Tracer, x: Traced) -> Tensor:
    return (x + 3).clamp(0, 6) / 6


@OPERATORS.handles("aten::hardswish")
def _hardswish(tracer: Tracer, x: Traced) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6


@OPERATORS.handles("aten::celu")
def _celu(tracer: Tracer, x: Traced, alpha: float = 1) -> Traced:
    return unary(tracer, x, "elu", alpha, 1, 1 / alpha)


@OPERATORS.handles("aten::threshold")
def _threshold(tracer: Tracer, x: Traced, threshold: float, value: float) -> Tensor:
    return x.masked_fill(x <= threshold, value)


@OPERATORS.handles("aten::hardshrink")
def _hardshrink(tracer: Tracer, x: Traced, most: float = 0.5) -> Tensor:
    return x.masked_fill(x.abs() <= most, 0)


@OPERATORS.handles("aten::softshrink")
def _softshrink(tracer: Tracer, x: Traced, most: float = 0.5) -> Tensor:
    return x - x.clamp(-most, most)


@OPERATORS.handles("aten::rrelu_with_noise")
def _rrelu(tracer: Tracer, *_: Any) -> Traced:
    raise NotTraceable(
        f"layer {tracer.name()!r}: a random leaky ReLU; nn.LeakyReLU(11 / 48) is what it is in evaluation"
    )
