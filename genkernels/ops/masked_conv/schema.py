"""The operators' signatures; kernels and derivatives are registered by op.py and derivatives.py.

    genkernels::masked_conv2d                x, weight, bias -> y
    genkernels::masked_conv2d_backward       grad_y, x, weight, y -> grad_x, grad_weight, grad_bias
    genkernels::masked_conv2d_gated          x, weight, bias, addend -> y, features (see gated.py)
    genkernels::masked_conv2d_gate_backward  grad_y, features -> grad_features, its sum over the pixels

``needs`` says which gradients are wanted; the others come back empty. ``output`` is y where the activation's slope
is read off it, else None.
"""

from __future__ import annotations

import torch

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
