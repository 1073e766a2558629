"""The operators' signatures; kernels and derivatives are registered by dispatch.py and derivatives.py.

    genkernels::instance_norm_act           x -> y and the statistics of each image's channels
    genkernels::instance_norm_act_backward  grad_y, x, statistics -> the gradients of x, weight and bias

x is [N, C, H, W], y too and in its layout. weight and bias are [C], in any floating dtype, or None (1, 0).
``statistics`` [2, N, C] (float64 for float64, else float32) holds the means and 1 / sqrt(variance + eps). ``needs``
says which gradients are wanted; the others come back empty.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

_TENSORS = "Tensor x, Tensor? weight, Tensor? bias"
_OPTIONS = "str activation, float negative_slope, float eps"

library = torch.library.Library("genkernels", "FRAGMENT")
library.define(f"instance_norm_act({_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor)")
library.define(
    f"instance_norm_act_backward(Tensor grad_output, {_TENSORS}, Tensor statistics, {_OPTIONS}, bool[3] needs) "
    "-> (Tensor, Tensor, Tensor)"
)
instance_norm_act_op = torch.ops.genkernels.instance_norm_act.default
instance_norm_act_backward_op = torch.ops.genkernels.instance_norm_act_backward.default


class Options(NamedTuple):
    """What both operators take beside tensors, in the order of their signatures."""

    activation: str
    negative_slope: float
    eps: float
