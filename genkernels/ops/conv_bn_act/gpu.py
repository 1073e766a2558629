"""Launches of convolution + batch norm + activation on a GPU: the functions of reference.py by implicit GEMM.

A transposed convolution of stride s is s x s dense convolutions in one launch (triton_conv/forward.py), which is also
the input gradient of a strided one. In training the convolution's epilogue leaves the statistics of its tiles, and one
more pass makes y; in evaluation scale and shift are applied in the epilogue, and there is no second pass. Backward
reads grad_y and z once for the channel sums, and once more for the gradient of z, which both products then read.
channels_last is the layout of the tensor cores: with 16 channels and more, other inputs are copied to it once and
contiguous results from it.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ...triton_conv.arguments import INTERPRETED
from ...triton_conv.forward import convolve
from ...triton_conv.gradient import gradient
from ...triton_conv.launch import cdiv, on_device
from ...triton_conv.norm import NormaliseForm, NormaliseTile, normalise_kernel, statistics_kernel
from ...triton_conv.tap_geometry import TapGeometry
from ...triton_conv.weight_gradient import weight_gradient
from ..core.activation import Activation
from ..core.layout import empty_grad_input
from ..core.strides import channels_adjoin
from .geometry import Geometry, GradientMeans, Norm, empty_output

_Needs = tuple[bool, ...]
_TILE, _MOST_COLUMNS, _TILES = 2048, 64, 4  # elements and columns of a tile of the pass that makes y, and tiles


def _gathering(geometry: Geometry, kernel: tuple[int, ...]) -> TapGeometry:
    """From a large image to a small one."""
    height, width = geometry.padding
    return TapGeometry((kernel[0], kernel[1]), kernel[0] * kernel[1], first=(-height, -width), stride=geometry.stride)


def _spreading(geometry: Geometry, kernel: tuple[int, ...]) -> TapGeometry:
    """From a small image to a large one."""
    return TapGeometry(
        (kernel[0], kernel[1]), kernel[0] * kernel[1],
        first=geometry.padding, step=(-1, -1), phases=geometry.stride,
    )  # fmt: skip


def _product(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, geometry: Geometry,
    activation: Activation, stats: list[Tensor] | None,
) -> Tensor:  # fmt: skip
    y = empty_output(x, weight, geometry)
    taps = _spreading if geometry.transposed else _gathering
    convolve(
        x, weight.transpose(0, 1) if geometry.transposed else weight, y, taps(geometry, weight.shape[2:]),
        scale=scale, bias=shift, activation=activation.name, slope=activation.negative_slope, stats=stats,
    )  # fmt: skip
    return y


def forward(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None,
    geometry: Geometry, activation: Activation,
) -> Tensor:  # fmt: skip
    return _product(x, weight, scale, shift, geometry, activation, None)


def backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None,
    geometry: Geometry, activation: Activation, needs: _Needs,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    grad_shift = torch.empty(grad_output.shape[1], device=x.device) if needs[2] else None
    if x.numel() == 0:
        zeros = [torch.zeros_like(t) if need else None for t, need in zip((x, weight), needs, strict=False)]
        return zeros[0], zeros[1], None if grad_shift is None else grad_shift.zero_()
    g = gradient(grad_output, output, *activation, sums=grad_shift)
    return (*_products_of_gradient(g, x, weight, geometry, needs), grad_shift)


def statistics(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    parts: list[Tensor] = []
    z = _product(x, weight, None, None, geometry, Activation("none", 0.0), parts)
    channels = z.shape[1]
    result = torch.empty((2, channels), device=x.device)
    with on_device(x):
        statistics_kernel[(cdiv(channels, 16),)](
            stats=parts[-1], result=result, tiles=parts[-1].shape[0], C=channels, TILES=128, CHANNELS=16
        )
    return z, result[0], result[1]


def normalise(z: Tensor, norm: Norm, activation: Activation) -> Tensor:
    y = torch.empty_like(z)
    innermost = channels_adjoin(z)
    length = z.shape[1] if innermost else z.shape[2] * z.shape[3]
    lines = z.numel() // length
    columns = min(triton.next_power_of_2(length), _MOST_COLUMNS)
    tile = NormaliseTile(_TILE // columns, columns, _TILES)
    with on_device(z):
        normalise_kernel[(cdiv(length, columns) * cdiv(lines, tile.lines * tile.tiles),)](
            z=z, y=y, norm=norm._replace(mean=norm.mean.contiguous(), rstd=norm.rstd.contiguous()),
            lines=lines, length=length, C=z.shape[1], slope=activation.negative_slope,
            FORM=NormaliseForm(innermost, activation.name, INTERPRETED), TILE=tile,
        )  # fmt: skip
    return y


def _coefficients(norm: Norm, *means: Tensor) -> Tensor:
    """mean, rstd, weight, bias and, for the gradient of z, means of g and g * zhat, as gradient_kernel takes them."""
    weight = torch.ones_like(norm.mean) if norm.weight is None else norm.weight
    bias = torch.zeros_like(norm.mean) if norm.bias is None else norm.bias
    return torch.stack([norm.mean, norm.rstd, weight, bias, *means])


def gradient_sums(grad_output: Tensor, z: Tensor, norm: Norm, activation: Activation) -> tuple[Tensor, Tensor]:
    sums = torch.empty((2, z.shape[1]), device=z.device)
    gradient(grad_output, z, *activation, sums=sums, norm=_coefficients(norm), write=False)
    return sums[0], sums[1]


def backward_with_norm(
    grad_output: Tensor, x: Tensor, weight: Tensor, z: Tensor, norm: Norm, means: GradientMeans,
    geometry: Geometry, activation: Activation, needs: _Needs,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    g = gradient(grad_output, z, *activation, norm=_coefficients(norm, *means))
    return _products_of_gradient(g, x, weight, geometry, needs)


def _products_of_gradient(
    g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needs: _Needs
) -> tuple[Tensor | None, Tensor | None]:
    grad_x = empty_grad_input(x) if needs[0] else None
    grad_weight = torch.empty_like(weight) if needs[1] else None
    kernel = weight.shape[2:]
    if grad_x is not None:
        if geometry.transposed:
            convolve(g, weight, grad_x, _gathering(geometry, kernel))
        else:
            convolve(g, weight.transpose(0, 1), grad_x, _spreading(geometry, kernel))
    if grad_weight is not None:
        small, large = (x, g) if geometry.transposed else (g, x)
        weight_gradient(small, large, grad_weight, _gathering(geometry, kernel))
    return grad_x, grad_weight
