"""Instance norm and activation in plain PyTorch: every dtype, every device, and the oracle.

This file and cpu.py (and every other backend) hold the same two functions, which dispatch.py calls with images in one
dense layout: ``forward`` and ``backward``. With g = grad_y * act'(u), u the activation's argument and
xhat = (x - mean) * rstd, the gradient of x is ``weight * rstd * (g - mean(g) - xhat * mean(g * xhat))``, the means
being those of a channel of an image (Ioffe & Szegedy 2015, section 3, for one image).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.activation import act, slope_at
from ..core.dtypes import accumulator

_PIXELS = (2, 3)


def _channels(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def _argument(xhat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    u = xhat if weight is None else xhat * _channels(weight)
    return u if bias is None else u + _channels(bias)


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str, negative_slope: float, eps: float
) -> tuple[Tensor, Tensor]:
    """y and [2, N, C], mean and rstd; differentiable."""
    values = x.to(accumulator(x.dtype))
    mean = values.mean(_PIXELS, keepdim=True)
    away = values - mean
    rstd = (away.square().mean(_PIXELS, keepdim=True) + eps).rsqrt()
    y = act(_argument(away * rstd, weight, bias), activation, negative_slope)
    return y.to(x.dtype), torch.stack([mean, rstd]).flatten(2)


def backward(
    grad_output: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor,
    activation: str, negative_slope: float, needs_x: bool,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    """The gradient of x, and [2, N, C], the sums of g * xhat and of g over the pixels."""
    mean, rstd = statistics[:, :, :, None, None]
    xhat = (x.to(mean.dtype) - mean) * rstd
    g = grad_output.to(mean.dtype)
    if activation != "none":
        y = act(_argument(xhat, weight, bias), activation, negative_slope)
        g = g * slope_at(y, activation, negative_slope)
    sums = torch.stack([(g * xhat).sum(_PIXELS), g.sum(_PIXELS)])
    if not needs_x:
        return None, sums
    mean_g_xhat, mean_g = sums[:, :, :, None, None] / (x.shape[2] * x.shape[3])
    factor = rstd if weight is None else rstd * _channels(weight)
    return (factor * (g - mean_g - xhat * mean_g_xhat)).to(x.dtype), sums
