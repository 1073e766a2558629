"""The native CPU kernels: layout and allocation around ``_C``; the functions are those of reference.py."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import backends
from ..core.layout import empty_grad_input, output_format
from ..core.strides import channels_adjoin, strides_of
from ..masked_conv.cpu import _STORAGE, readable, why_not  # noqa: F401 - why_not is for kernels.py
from .geometry import ACTIVATIONS, Geometry, empty_output

_NOTHING = (0, (0, 0, 0, 0))

_Needs = tuple[bool, ...]


def _sizes(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[int, ...]:
    image = (x.shape[1:], geometry.output_shape(x, weight)[1:])
    small, large = image if geometry.transposed else image[::-1]
    return (x.shape[0], *small, *large, *weight.shape[2:], *geometry.stride, *geometry.padding)


def _strided(t: Tensor) -> tuple[int, tuple[int, ...]]:
    return t.data_ptr(), strides_of(t)


def _address(values: Tensor | None) -> int:
    return 0 if values is None else values.data_ptr()


def _activation(name: str, negative_slope: float) -> tuple[int, float]:
    return ACTIVATIONS.index(name), negative_slope


def _coefficients(
    mean: Tensor, rstd: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None,
    mean_g: Tensor | None = None, mean_g_zhat: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """[7, C], as ``_C`` takes them."""
    zeros = torch.zeros_like(mean)
    gamma = torch.ones_like(mean) if bn_weight is None else bn_weight
    beta, first, second = (zeros if v is None else v for v in (bn_bias, mean_g, mean_g_zhat))
    return torch.stack([mean, rstd, gamma, beta, gamma * rstd, first, second])


def _plain(z: Tensor) -> tuple[int, int, int]:
    return z.shape[0], z.shape[1], z.shape[2] * z.shape[3]


def _as_laid_out(t: Tensor, like: Tensor) -> Tensor:
    """t dense and in the layout of `like`, which is dense: itself where it is so already."""
    if strides_of(t) == strides_of(like):
        return t
    return t.contiguous(memory_format=torch.channels_last if channels_adjoin(like) else torch.contiguous_format)


def _check(done: bool) -> None:
    if not done:
        raise MemoryError("conv_bn_act: no memory for the kernel's scratch")


def _product(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, geometry: Geometry,
    activation: str, negative_slope: float, statistics: Tensor | None,
) -> Tensor:  # fmt: skip
    y = empty_output(x, weight, geometry)
    if y.numel() == 0:
        return y
    x = readable(x)
    _check(
        backends.require_native().conv_forward(
            _STORAGE[x.dtype],
            torch.get_num_threads(),
            _sizes(x, weight, geometry),
            geometry.transposed,
            _strided(x),
            _strided(weight),
            _strided(y),
            _address(scale),
            _address(shift),
            _activation(activation, negative_slope),
            _address(statistics),
        )
    )
    return y


def forward(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None,
    geometry: Geometry, activation: str, negative_slope: float,
) -> Tensor:  # fmt: skip
    return _product(x, weight, scale, shift, geometry, activation, negative_slope, None)


def statistics(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    moments = torch.empty(2, geometry.out_channels(weight))
    z = _product(x, weight, None, None, geometry, "none", 0.0, moments)
    return z, moments[0], moments[1]


def normalise(
    z: Tensor, mean: Tensor, rstd: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None,
    activation: str, negative_slope: float,
) -> Tensor:  # fmt: skip
    y = torch.empty_like(z)
    coefficients = _coefficients(mean, rstd, bn_weight, bn_bias)
    backends.require_native().norm_forward(
        _STORAGE[z.dtype],
        torch.get_num_threads(),
        _plain(z),
        channels_adjoin(z),
        z.data_ptr(),
        coefficients.data_ptr(),
        _activation(activation, negative_slope),
        y.data_ptr(),
    )
    return y


def gradient_sums(
    grad_output: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None,
    activation: str, negative_slope: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _sums(grad_output, z, _coefficients(mean, rstd, bn_weight, bn_bias), activation, negative_slope)


def _sums(
    grad_output: Tensor, other: Tensor, coefficients: Tensor | None, activation: str, negative_slope: float
) -> tuple[Tensor, Tensor]:
    grad_output = _as_laid_out(grad_output, other)
    sums = torch.empty(2, other.shape[1])
    _check(
        backends.require_native().norm_gradient_sums(
            _STORAGE[other.dtype],
            torch.get_num_threads(),
            _plain(other),
            channels_adjoin(other),
            grad_output.data_ptr(),
            other.data_ptr(),
            _address(coefficients),
            _activation(activation, negative_slope),
            sums.data_ptr(),
        )
    )
    return sums[0], sums[1]


def backward_with_norm(
    grad_output: Tensor, x: Tensor, weight: Tensor, z: Tensor, mean: Tensor, rstd: Tensor,
    bn_weight: Tensor | None, bn_bias: Tensor | None, mean_g: Tensor, mean_g_zhat: Tensor,
    geometry: Geometry, activation: str, negative_slope: float, needs: _Needs,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    coefficients = _coefficients(mean, rstd, bn_weight, bn_bias, mean_g, mean_g_zhat)
    return _gradients(grad_output, z, coefficients, x, weight, geometry, activation, negative_slope, needs)


def _gradients(
    grad_output: Tensor, other: Tensor, coefficients: Tensor | None, x: Tensor, weight: Tensor,
    geometry: Geometry, activation: str, negative_slope: float, needs: _Needs,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    grad_output = _as_laid_out(grad_output, other)
    grad_x = empty_grad_input(x) if needs[0] else None
    grad_weight = torch.empty_like(weight) if needs[1] else None
    x = readable(x)
    _check(
        backends.require_native().conv_backward(
            _STORAGE[x.dtype],
            torch.get_num_threads(),
            _sizes(x, weight, geometry),
            geometry.transposed,
            _strided(grad_output),
            other.data_ptr(),
            _address(coefficients),
            _activation(activation, negative_slope),
            _strided(x),
            _strided(weight),
            _NOTHING if grad_x is None else _strided(grad_x),
            _NOTHING if grad_weight is None else _strided(grad_weight),
        )
    )
    return grad_x, grad_weight


def backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None,
    geometry: Geometry, activation: str, negative_slope: float, needs: _Needs,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    if x.shape[0] == 0:
        return (
            torch.zeros_like(x) if needs[0] else None,
            torch.zeros_like(weight) if needs[1] else None,
            x.new_zeros(geometry.out_channels(weight), dtype=torch.float32) if needs[2] else None,
        )
    # Values that the kernels walk side by side with the gradient; without an activation they do not matter.
    memory_format = output_format(x, weight)
    other = (grad_output if output is None else output).contiguous(memory_format=memory_format)
    grad_output = other if output is None else _as_laid_out(grad_output, other)
    grad_x = grad_weight = grad_shift = None
    if needs[0] or needs[1]:
        grad_x, grad_weight = _gradients(
            grad_output, other, None, x, weight, geometry, activation, negative_slope, needs
        )
    if needs[2]:
        grad_shift, _ = _sums(grad_output, other, None, activation, negative_slope)
    return grad_x, grad_weight, grad_shift
