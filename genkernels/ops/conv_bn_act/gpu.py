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
from ...triton_conv.norm import Norm, NormaliseForm, NormaliseTile, normalise_kernel, statistics_kernel
from ...triton_conv.tap_geometry import TapGeometry
from ...triton_conv.weight_gradient import weight_gradient
from ..core.layout import empty_grad_input
from ..core.strides import channels_adjoin
from .geometry import Geometry, empty_output

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
    activation: str, negative_slope: float, stats: list[Tensor] | None,
) -> Tensor:  # fmt: skip
    y = empty_output(x, weight, geometry)
    taps = _spreading if geometry.transposed else _gathering
    convolve(
        x, weight.transpose(0, 1) if geometry.transposed else weight, y, taps(geometry, weight.shape[2:]),
        scale=scale, bias=shift, activation=activation, slope=negative_slope, stats=stats,
    )  # fmt: skip
    return y


def forward(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None,
    geometry: Geometry, activation: str, negative_slope: float,
) -> Tensor:  # fmt: skip
    return _product(x, weight, scale, shift, geometry, activation, negative_slope, None)


def backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None,
    geometry: Geometry, activation: str, negative_slope: float, needs: _Needs,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    grad_shift = torch.empty(grad_output.shape[1], device=x.device) if needs[2] else None
    if x.numel() == 0:
        zeros = [torch.zeros_like(t) if need else None for t, need in zip((x, weight), needs, strict=False)]
        return zeros[0], zeros[1], None if grad_shift is None else grad_shift.zero_()
    g = gradient(grad_output, output, activation, negative_slope, sums=grad_shift)
    return (*_products_of_gradient(g, x, weight, geometry, needs), grad_shift)


def statistics(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    parts: list[Tensor] = []
    z = _product(x, weight, None, None, geometry, "none", 0.0, parts)
    channels = z.shape[1]
    result = torch.empty((2, channels), device=x.device)
    with on_device(x):
        statistics_kernel[(cdiv(channels, 16),)](
            stats=parts[-1], result=result, tiles=parts[-1].shape[0], C=channels, TILES=128, CHANNELS=16
        )
    return z, result[0], result[1]


def normalise(
    z: Tensor, mean: Tensor, rstd: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None,
    activation: str, negative_slope: float,
) -> Tensor:  # fmt: skip
    y = torch.empty_like(z)
    innermost = channels_adjoin(z)
    length = z.shape[1] if innermost else z.shape[2] * z.shape[3]
    lines = z.numel() // length
    columns = min(triton.next_power_of_2(length), _MOST_COLUMNS)
    tile = NormaliseTile(_TILE // columns, columns, _TILES)
    with on_device(z):
        normalise_kernel[(cdiv(length, columns) * cdiv(lines, tile.lines * tile.tiles),)](
            z=z, y=y, norm=Norm(mean.contiguous(), rstd.contiguous(), bn_weight, bn_bias),
            lines=lines, length=length, C=z.shape[1], slope=negative_slope,
            FORM=NormaliseForm(innermost, activation, INTERPRETED), TILE=tile,
        )  # fmt: skip
    return y


def _coefficients(
    mean: Tensor, rstd: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, *means: Tensor
) -> Tensor:  # fmt: skip
    """mean, rstd, weight, bias and, for the gradient of z, mean_g and mean_g_zhat, as gradient_kernel takes them."""
    weight = torch.ones_like(mean) if bn_weight is None else bn_weight
    bias = torch.zeros_like(mean) if bn_bias is None else bn_bias
    return torch.stack([mean, rstd, weight, bias, *means])


def gradient_sums(
    grad_output: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None,
    activation: str, negative_slope: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    sums = torch.empty((2, z.shape[1]), device=z.device)
    norm = _coefficients(mean, rstd, bn_weight, bn_bias)
    gradient(grad_output, z, activation, negative_slope, sums=sums, norm=norm, write=False)
    return sums[0], sums[1]


def backward_with_norm(
    grad_output: Tensor, x: Tensor, weight: Tensor, z: Tensor, mean: Tensor, rstd: Tensor,
    bn_weight: Tensor | None, bn_bias: Tensor | None, mean_g: Tensor, mean_g_zhat: Tensor,
    geometry: Geometry, activation: str, negative_slope: float, needs: _Needs,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    norm = _coefficients(mean, rstd, bn_weight, bn_bias, mean_g, mean_g_zhat)
    g = gradient(grad_output, z, activation, negative_slope, norm=norm)
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
