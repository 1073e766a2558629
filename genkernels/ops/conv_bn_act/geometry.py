"""The sizes of a convolution or transposed convolution, and what a batch norm hands to the kernels.

A convolution maps a *large* image to a *small* one, a transposed convolution a small one to a large one; both are
described by the same relation

    small[o] meets large[o * stride - padding + k] through weight[small channel, large channel, k]

so the input gradient of each is the other, and the two share the gradient of the weight. The weight of ``nn.Conv2d``
[out, in, kh, kw] and that of ``nn.ConvTranspose2d`` [in, out, kh, kw] both are [small, large, kh, kw].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.layout import output_format


class Norm(NamedTuple):
    """A batch norm by given statistics, [out] each in the accumulator's dtype; weight and bias: or None (1 and 0)."""

    mean: Tensor
    rstd: Tensor
    weight: Tensor | None
    bias: Tensor | None


class GradientMeans(NamedTuple):
    """Means over the values of a channel, [out]: of g, the gradient before the activation, and of g * zhat."""

    g: Tensor
    g_zhat: Tensor


Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Which product a call asks for, without the sizes of its tensors."""

    transposed: bool
    stride: Pair
    padding: Pair
    output_padding: Pair  # (0, 0) unless transposed

    def output_size(self, height: int, width: int, kernel: Sequence[int]) -> Pair:
        """Height and width of the result; less than 1 where the input is too small."""
        sizes = [
            (size - 1) * stride - 2 * padding + k + extra if self.transposed else (size + 2 * padding - k) // stride + 1
            for size, stride, padding, extra, k in zip(
                (height, width), self.stride, self.padding, self.output_padding, kernel, strict=True
            )
        ]
        return sizes[0], sizes[1]

    def out_channels(self, weight: Tensor) -> int:
        return weight.shape[1 if self.transposed else 0]

    def in_channels(self, weight: Tensor) -> int:
        return weight.shape[0 if self.transposed else 1]

    def output_shape(self, x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        height, width = self.output_size(x.shape[2], x.shape[3], weight.shape[2:])
        return x.shape[0], self.out_channels(weight), height, width

    def per_output(self, values: Tensor) -> Tensor:
        """[out] -> a shape that multiplies the weight."""
        return values.view(1, -1, 1, 1) if self.transposed else values.view(-1, 1, 1, 1)


@lru_cache(maxsize=256)
def _geometry(transposed: bool, stride: Pair, padding: Pair, output_padding: Pair) -> Geometry:
    return Geometry(transposed, stride, padding, output_padding)


def geometry_of(
    transposed: bool, stride: Sequence[int], padding: Sequence[int], output_padding: Sequence[int]
) -> Geometry:
    """From an operator's arguments; the dispatcher hands over lists."""
    return _geometry(
        transposed, (stride[0], stride[1]), (padding[0], padding[1]), (output_padding[0], output_padding[1])
    )


def empty_output(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The result of a forward pass, [N, out, H', W'], not yet written: in the layout of x."""
    shape = geometry.output_shape(x, weight)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=output_format(x, weight))
