"""Instance norm and activation: the public function and its checks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.activation import check_activation
from ..core.autocast import autocast_is_on
from ..core.device_choice import description
from ..core.dtypes import accumulator
from ..core.verbose import is_on
from . import dispatch
from .derivatives import instance_norm_act as _instance_norm_act
from .schema import Options


def instance_norm_act(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *,
    eps: float = 1e-5, activation: str | None = None, negative_slope: float = 0.01,
) -> Tensor:  # fmt: skip
    """Instance norm and activation in one pass: ``act(F.instance_norm(x, weight=weight, bias=bias, eps=eps))``.

    Each channel of each image is normalised by its own mean and biased variance, in training and evaluation alike.

    Args:
        x: [N, C, H, W] or [C, H, W]; float64, float32, bfloat16 or float16 (16-bit types accumulate in float32). Any
            strides; a tensor that is neither contiguous nor channels_last is copied once.
        weight, bias: [C] or None (1 and 0); the dtype of x or float32.
        eps: added to the variance.
        activation: None, "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu", at least 0.

    Returns:
        The shape and dtype of x; channels_last where x is, else contiguous.

    Differentiable any number of times (second derivatives run in plain PyTorch); works under autocast,
    ``torch.compile`` and ``torch.func``. x alone is kept for backward, which works out the rest again.

    Raises:
        ValueError: an argument does not fit; the message names it, what was expected and what came.
        TypeError: a dtype does not fit.

    Source: Ulyanov, Vedaldi, Lempitsky 2016, "Instance Normalization: The Missing Ingredient for Fast Stylization",
    equation 5.
    """
    check_activation(activation, negative_slope)
    _check_tensors(x, weight, bias)
    options = Options(activation or "none", float(negative_slope), float(eps))
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    y, _ = _instance_norm_act(batched, weight, bias, *options)
    if is_on() and not torch.compiler.is_compiling():
        dispatch.log_call(description(x, "it walks each image once"), x, weight, bias, options)
    return y if x.dim() == 4 else y.squeeze(0)


def _check_tensors(x: Any, weight: Any, bias: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch.Tensor; got {type(x).__name__}")
    if x.dim() not in (3, 4):
        raise ValueError(f"x: expected [N, C, H, W] or [C, H, W]; got shape {list(x.shape)}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"x: expected a floating-point dtype; got {x.dtype}")
    if x.shape[-1] * x.shape[-2] == 1:
        raise ValueError(f"x: expected more than one pixel; instance norm has no variance; got shape {list(x.shape)}")
    autocast = autocast_is_on(x.device.type)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor or None; got {type(tensor).__name__}")
        if tensor.dim() != 1 or tensor.shape[0] != x.shape[-3]:
            raise ValueError(f"{name}: expected shape [{x.shape[-3]}]; got {list(tensor.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: expected the device of x, {x.device}; got {tensor.device}")
        if tensor.dtype not in (x.dtype, accumulator(x.dtype)) and not autocast:
            raise TypeError(f"{name}: expected {x.dtype} or {accumulator(x.dtype)}; got {tensor.dtype}")
