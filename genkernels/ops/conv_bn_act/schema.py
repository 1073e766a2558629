"""The operators' signatures; kernels and derivatives are registered by dispatch.py and derivatives.py.

    genkernels::conv_act              y = act(scale * conv(x, weight) + shift)
    genkernels::conv_act_backward     grad_y, x, weight, y -> grad_x, grad_weight, grad_shift, for scale 1
    genkernels::conv_bn_act           z = conv(x, weight), y = act(normalised z), by the statistics of this batch
    genkernels::conv_bn_act_backward  grad_y, x, weight, z, statistics -> the gradients of the four inputs

``conv`` is a convolution, or with ``transposed`` a transposed one; weights are as in torch.nn. scale, shift,
bn_weight and bn_bias are [out] in any floating dtype or None (1, 0).

The operators change none of their arguments. ``statistics`` [3, out] holds the mean of z, its biased variance and the
number of values of a channel (float64 for float64, else float32): from it the caller updates running ones.

``output`` is y where the activation's slope is read off it, else None. ``needs`` says which gradients are wanted; the
others come back empty. ``group`` is the name of the process group over which statistics are taken, "" for none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..core.activation import Activation
from .geometry import Geometry, geometry_of

_CONV = "bool transposed, int[2] stride, int[2] padding, int[2] output_padding"
_ACT = "str activation, float negative_slope"
_BN = "Tensor? bn_weight, Tensor? bn_bias"

library = torch.library.Library("genkernels", "FRAGMENT")
library.define(f"conv_act(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, {_CONV}, {_ACT}) -> Tensor")
library.define(
    f"conv_act_backward(Tensor grad_output, Tensor x, Tensor weight, Tensor? output, {_CONV}, {_ACT}, "
    "bool[3] needs) -> (Tensor, Tensor, Tensor)"
)
library.define(
    f"conv_bn_act(Tensor x, Tensor weight, {_BN}, {_CONV}, {_ACT}, float eps, str group) -> (Tensor, Tensor, Tensor)"
)
library.define(
    f"conv_bn_act_backward(Tensor grad_output, Tensor x, Tensor weight, {_BN}, Tensor z, Tensor statistics, "
    f"{_CONV}, {_ACT}, float eps, str group, bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)"
)
conv_act_op = torch.ops.genkernels.conv_act.default
conv_act_backward_op = torch.ops.genkernels.conv_act_backward.default
conv_bn_act_op = torch.ops.genkernels.conv_bn_act.default
conv_bn_act_backward_op = torch.ops.genkernels.conv_bn_act_backward.default


class Options(NamedTuple):
    """What conv_act and its backward pass take beside tensors, in the order of their signatures."""

    transposed: bool
    stride: Sequence[int]
    padding: Sequence[int]
    output_padding: Sequence[int]
    activation: str
    negative_slope: float

    def geometry(self) -> Geometry:
        return geometry_of(*self[:4])

    def act(self) -> Activation:
        return Activation(self.activation, self.negative_slope)

    def linear(self) -> Options:
        """Without the activation."""
        return Options(*self[:4], "none", 0.0)


class NormOptions(NamedTuple):
    """The same of conv_bn_act and its backward pass."""

    transposed: bool
    stride: Sequence[int]
    padding: Sequence[int]
    output_padding: Sequence[int]
    activation: str
    negative_slope: float
    eps: float
    group: str

    def block(self) -> Options:
        """Convolution and activation."""
        return Options(*self[:6])
