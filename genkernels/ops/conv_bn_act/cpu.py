"""The native CPU kernels: layout and allocation around ``_C``; the functions are those of reference.py."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ... import backends
from ..core.activation import ACTIVATIONS, Activation
from ..core.dtypes import STORAGE
from ..core.layout import empty_grad_input, output_format
from ..core.strides import channels_adjoin, readable, strides_of
from .geometry import Geometry, GradientMeans, Norm, empty_output

if TYPE_CHECKING:
    from ..._C import ConvShape

_NOTHING = (0, (0, 0, 0, 0))

_Needs = tuple[bool, ...]


@lru_cache(maxsize=1024)  # to make one takes longer than to find it
def conv_shape(x: torch.Size, weight: torch.Size, geometry: Geometry) -> ConvShape:
    """The sizes of a call, as ``_C`` takes them."""
    batch, _, height, width = x
    sizes = ((height, width), geometry.output_size(height, width, weight[2:]))
    low_size, high_size = sizes if geometry.transposed else sizes[::-1]
    return backends.require_native().ConvShape(
        batch=batch, low_channels=weight[0], high_channels=weight[1], low_size=low_size, high_size=high_size,
        kernel=(weight[2], weight[3]), stride=geometry.stride, padding=geometry.padding,
    )  # fmt: skip


def _strided(t: Tensor) -> tuple[int, tuple[int, ...]]:
    return t.data_ptr(), strides_of(t)


def _address(values: Tensor | None) -> int:
    return 0 if values is None else values.data_ptr()


def _code(activation: Activation) -> tuple[int, float]:
    return ACTIVATIONS.index(activation.name), activation.negative_slope


def _coefficients(norm: Norm, means: GradientMeans | None = None) -> Tensor:
    """[7, C], as ``_C`` takes them."""
    zeros = torch.zeros_like(norm.mean)
    weight = torch.ones_like(norm.mean) if norm.weight is None else norm.weight
    bias = zeros if norm.bias is None else norm.bias
    return torch.stack([norm.mean, norm.rstd, weight, bias, weight * norm.rstd, *(means or (zeros, zeros))])


def _sizes(z: Tensor) -> tuple[int, int, int]:
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
    activation: Activation, statistics: Tensor | None,
) -> Tensor:  # fmt: skip
    y = empty_output(x, weight, geometry)
    if y.numel() == 0:
        return y
    x = readable(x)
    _check(
        backends.require_native().conv_forward(
            storage=STORAGE[x.dtype],
            threads=torch.get_num_threads(),
            shape=conv_shape(x.shape, weight.shape, geometry),
            transposed=geometry.transposed,
            x=_strided(x),
            weight=_strided(weight),
            y=_strided(y),
            scale=_address(scale),
            shift=_address(shift),
            activation=_code(activation),
            statistics=_address(statistics),
        )
    )
    return y


def forward(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None,
    geometry: Geometry, activation: Activation,
) -> Tensor:  # fmt: skip
    return _product(x, weight, scale, shift, geometry, activation, None)


def statistics(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    moments = torch.empty(2, geometry.out_channels(weight))
    z = _product(x, weight, None, None, geometry, Activation("none", 0.0), moments)
    return z, moments[0], moments[1]


def normalise(z: Tensor, norm: Norm, activation: Activation) -> Tensor:
    y = torch.empty_like(z)
    coefficients = _coefficients(norm)
    backends.require_native().norm_forward(
        storage=STORAGE[z.dtype],
        threads=torch.get_num_threads(),
        sizes=_sizes(z),
        channels_last=channels_adjoin(z),
        z=z.data_ptr(),
        coefficients=coefficients.data_ptr(),
        activation=_code(activation),
        y=y.data_ptr(),
    )
    return y


def gradient_sums(grad_output: Tensor, z: Tensor, norm: Norm, activation: Activation) -> tuple[Tensor, Tensor]:
    return _sums(grad_output, z, _coefficients(norm), activation)


def _sums(
    grad_output: Tensor, other: Tensor, coefficients: Tensor | None, activation: Activation
) -> tuple[Tensor, Tensor]:
    grad_output = _as_laid_out(grad_output, other)
    sums = torch.empty(2, other.shape[1])
    _check(
        backends.require_native().norm_gradient_sums(
            storage=STORAGE[other.dtype],
            threads=torch.get_num_threads(),
            sizes=_sizes(other),
            channels_last=channels_adjoin(other),
            grad=grad_output.data_ptr(),
            other=other.data_ptr(),
            coefficients=_address(coefficients),
            activation=_code(activation),
            sums=sums.data_ptr(),
        )
    )
    return sums[0], sums[1]


def backward_with_norm(
    grad_output: Tensor, x: Tensor, weight: Tensor, z: Tensor, norm: Norm, means: GradientMeans,
    geometry: Geometry, activation: Activation, needs: _Needs,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    return _gradients(grad_output, z, _coefficients(norm, means), x, weight, geometry, activation, needs)


def _gradients(
    grad_output: Tensor, other: Tensor, coefficients: Tensor | None, x: Tensor, weight: Tensor,
    geometry: Geometry, activation: Activation, needs: _Needs,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    grad_output = _as_laid_out(grad_output, other)
    grad_x = empty_grad_input(x) if needs[0] else None
    grad_weight = torch.empty_like(weight) if needs[1] else None
    x = readable(x)
    _check(
        backends.require_native().conv_backward(
            storage=STORAGE[x.dtype],
            threads=torch.get_num_threads(),
            shape=conv_shape(x.shape, weight.shape, geometry),
            transposed=geometry.transposed,
            grad=_strided(grad_output),
            other=other.data_ptr(),
            coefficients=_address(coefficients),
            activation=_code(activation),
            x=_strided(x),
            weight=_strided(weight),
            grad_x=_NOTHING if grad_x is None else _strided(grad_x),
            grad_weight=_NOTHING if grad_weight is None else _strided(grad_weight),
        )
    )
    return grad_x, grad_weight


def backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None,
    geometry: Geometry, activation: Activation, needs: _Needs,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    if x.shape[0] == 0:
        return (
            torch.zeros_like(x) if needs[0] else None,
            torch.zeros_like(weight) if needs[1] else None,
            x.new_zeros(geometry.out_channels(weight), dtype=torch.float32) if needs[2] else None,
        )
    # Values that the kernels read side by side with the gradient; without an activation they do not matter.
    memory_format = output_format(x, weight)
    other = (grad_output if output is None else output).contiguous(memory_format=memory_format)
    grad_output = other if output is None else _as_laid_out(grad_output, other)
    grad_x = grad_weight = grad_shift = None
    if needs[0] or needs[1]:
        grad_x, grad_weight = _gradients(grad_output, other, None, x, weight, geometry, activation, needs)
    if needs[2]:
        grad_shift, _ = _sums(grad_output, other, None, activation)
    return grad_x, grad_weight, grad_shift
