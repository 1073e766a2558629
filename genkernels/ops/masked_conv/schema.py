"""The operators' signatures and their options by name; dispatch.py and derivatives.py register the rest.

    genkernels::masked_conv2d                x, weight, bias -> y
    genkernels::masked_conv2d_backward       grad_y, x, weight, y -> grad_x, grad_weight, grad_bias
    genkernels::masked_conv2d_gated          x, weight, bias, addend -> y, features
    genkernels::masked_conv2d_gate_backward  grad_y, features -> grad_features, its sum over the pixels

``needs`` says which gradients are wanted; the others come back empty. ``output`` is y where the activation's slope
is read off it, else None.

``features`` [N, 2h, H, W] are what the gate reads, ``tanh(a) * sigmoid(b)`` of their halves; they are empty unless
``keep`` says that a derivative will want them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .mask import MaskSpec

_OPTIONS = "str mask_type, int channel_groups, str group_layout, int[2] dilation, str activation"

library = torch.library.Library("genkernels", "FRAGMENT")
library.define(f"masked_conv2d(Tensor x, Tensor weight, Tensor? bias, {_OPTIONS}) -> Tensor")
library.define(
    "masked_conv2d_backward(Tensor grad_output, Tensor x, Tensor weight, Tensor? output, "
    f"{_OPTIONS}, bool[3] needs) -> (Tensor, Tensor, Tensor)"
)
library.define(
    "masked_conv2d_gated(Tensor x, Tensor weight, Tensor? bias, Tensor? addend, "
    "str mask_type, int channel_groups, int[2] dilation, bool keep) -> (Tensor, Tensor)"
)
library.define("masked_conv2d_gate_backward(Tensor grad_output, Tensor features, bool sums) -> (Tensor, Tensor)")
forward_op = torch.ops.genkernels.masked_conv2d.default
backward_op = torch.ops.genkernels.masked_conv2d_backward.default
gated_op = torch.ops.genkernels.masked_conv2d_gated.default
gate_backward_op = torch.ops.genkernels.masked_conv2d_gate_backward.default


class Options(NamedTuple):
    """What masked_conv2d and its backward pass take beside tensors, in the order of their signatures."""

    mask_type: str
    channel_groups: int
    group_layout: str
    dilation: Sequence[int]  # the dispatcher hands over a list
    activation: str

    def spec(self, weight: Tensor) -> MaskSpec:
        return MaskSpec.of(weight, self.mask_type, self.channel_groups, self.group_layout)

    def dilation_pair(self) -> tuple[int, int]:
        """The dilation as the caches of cpu.py and mask.py need it."""
        return self.dilation[0], self.dilation[1]

    def linear(self) -> Options:
        """Without the activation."""
        return self._replace(activation="none")


class GatedOptions(NamedTuple):
    """The same of masked_conv2d_gated."""

    mask_type: str
    channel_groups: int
    dilation: Sequence[int]
    keep: bool

    def convolution(self) -> Options:
        """Those of the convolution in front of the gate."""
        return Options(self.mask_type, self.channel_groups, "halves", self.dilation, "none")
