"""Convolution + batch norm + activation in plain PyTorch: every dtype, every device, and the oracle.

This file and cpu.py (and every other backend) hold the same six functions, which dispatch.py calls:

    forward            act(scale * conv + shift)
    backward           the gradients of that, for scale 1
    statistics         z = conv, and the mean and sum of squared deviations of each of its channels
    normalise          act(batch norm of z)
    gradient_sums      what of the batch-norm gradient concerns all values of a channel
    backward_with_norm the gradients of x and weight through activation and batch norm

Per-channel values are [out] in the accumulator's dtype. With g = grad_y * act'(u), u the activation's argument and
zhat = (z - mean) * rstd, the gradient of z is ``bn_weight * rstd * (g - mean(g) - zhat * mean(g * zhat))``
(Ioffe & Szegedy 2015, section 3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.activation import Activation, act, slope_at
from ..core.dtypes import accumulator
from .geometry import Geometry, GradientMeans, Norm

_Needs = tuple[bool, ...]


def convolve(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The bare product; differentiable."""
    if x.shape[0] == 0:  # PyTorch's transposed convolution refuses it
        return x.new_zeros(geometry.output_shape(x, weight)) + 0 * (x.sum() + weight.sum())
    if geometry.transposed:
        return F.conv_transpose2d(x, weight, None, geometry.stride, geometry.padding, geometry.output_padding)
    return F.conv2d(x, weight, None, geometry.stride, geometry.padding)


def _channels(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def forward(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None,
    geometry: Geometry, activation: Activation,
) -> Tensor:  # fmt: skip
    u = convolve(x, weight, geometry).to(accumulator(x.dtype))
    if scale is not None:
        u = u * _channels(scale)
    if shift is not None:
        u = u + _channels(shift)
    return act(u, *activation).to(x.dtype)


def backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None,
    geometry: Geometry, activation: Activation, needs: _Needs,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of x, weight and shift; ``output`` is there unless the activation is "none"."""
    g = grad_output.to(accumulator(x.dtype))
    if output is not None:
        g = g * slope_at(output.to(g.dtype), *activation)
    grad_x, grad_weight = _convolution_backward(g.to(x.dtype), x, weight, geometry, needs)
    return grad_x, grad_weight, g.sum((0, 2, 3)) if needs[2] else None


def statistics(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """z, and the mean and the sum of squared deviations of each channel."""
    z = convolve(x, weight, geometry)
    values = z.to(accumulator(x.dtype))
    mean = values.mean((0, 2, 3))
    return z, mean, (values - _channels(mean)).square().sum((0, 2, 3))


def _normalised(z: Tensor, norm: Norm) -> Tensor:
    return (z.to(norm.mean.dtype) - _channels(norm.mean)) * _channels(norm.rstd)


def _activated(zhat: Tensor, norm: Norm, activation: Activation) -> Tensor:
    u = zhat if norm.weight is None else zhat * _channels(norm.weight)
    return act(u if norm.bias is None else u + _channels(norm.bias), *activation)


def normalise(z: Tensor, norm: Norm, activation: Activation) -> Tensor:
    return _activated(_normalised(z, norm), norm, activation).to(z.dtype)


def _through_activation(grad_output: Tensor, z: Tensor, norm: Norm, activation: Activation) -> tuple[Tensor, Tensor]:
    """g and zhat."""
    zhat = _normalised(z, norm)
    g = grad_output.to(norm.mean.dtype)
    if activation.name != "none":
        g = g * slope_at(_activated(zhat, norm, activation), *activation)
    return g, zhat


def gradient_sums(grad_output: Tensor, z: Tensor, norm: Norm, activation: Activation) -> tuple[Tensor, Tensor]:
    """The sums of g and of g * zhat over each channel: the gradients of bn_bias and bn_weight."""
    g, zhat = _through_activation(grad_output, z, norm, activation)
    return g.sum((0, 2, 3)), (g * zhat).sum((0, 2, 3))


def backward_with_norm(
    grad_output: Tensor, x: Tensor, weight: Tensor, z: Tensor, norm: Norm, means: GradientMeans,
    geometry: Geometry, activation: Activation, needs: _Needs,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of x and weight; ``means`` are the gradient sums over the number of values."""
    g, zhat = _through_activation(grad_output, z, norm, activation)
    factor = norm.rstd if norm.weight is None else norm.rstd * norm.weight
    grad_z = _channels(factor) * (g - _channels(means.g) - zhat * _channels(means.g_zhat))
    return _convolution_backward(grad_z.to(x.dtype), x, weight, geometry, needs)


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needs: _Needs
) -> tuple[Tensor | None, Tensor | None]:
    if x.shape[0] == 0:
        return torch.zeros_like(x) if needs[0] else None, torch.zeros_like(weight) if needs[1] else None
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        None,
        geometry.stride,
        geometry.padding,
        [1, 1],
        geometry.transposed,
        geometry.output_padding,
        1,
        [needs[0], needs[1], False],
    )
    return grad_x, grad_weight


def whole(
    x: Tensor, weight: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None,
    geometry: Geometry, activation: str, negative_slope: float, eps: float,
) -> Tensor:  # fmt: skip
    """The training pass in differentiable operators, in one process: what derivatives of higher order are made of."""
    z = convolve(x, weight, geometry)
    weights = [None if v is None else v.to(z.dtype) for v in (bn_weight, bn_bias)]
    normed = F.batch_norm(z, None, None, weights[0], weights[1], training=True, eps=eps)
    return act(normed, activation, negative_slope)
