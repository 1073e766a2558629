"""``InstanceNormAct2d``: instance norm and activation as one layer."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.conv_bn_act.heuristics import OWN, prefers_torch_norm
from ..ops.core.activation import act, check_activation
from ..ops.core.layout import input_format
from ..ops.core.verbose import is_on
from ..ops.instance_norm.dispatch import log_call
from ..ops.instance_norm.schema import Options


def normalise(x: Tensor, norm: nn.InstanceNorm2d, activation: str | None, negative_slope: float) -> Tensor:
    """By whichever is quicker, in the layout of x: [N, C, H, W] of more than one pixel or, for the operator, any."""
    weight, bias = norm.weight, norm.bias  # once a call: a parametrization computes them each time they are read
    if prefers_torch_norm(x, weight):
        if is_on():
            options = Options(activation or "none", negative_slope, norm.eps)
            log_call((OWN, f"{x.numel()} values, gradients"), x, weight, bias, options)
        y = act(F.instance_norm(x, weight=weight, bias=bias, eps=norm.eps), activation or "none", negative_slope)
        return y.contiguous(memory_format=input_format(x))
    return ops.instance_norm_act(x, weight, bias, eps=norm.eps, activation=activation, negative_slope=negative_slope)


class InstanceNormAct2d(nn.InstanceNorm2d):
    """``act(instance_norm(x))``, behind a convolution of any kind: the blocks of pix2pix and CycleGAN.

    Takes the arguments of ``nn.InstanceNorm2d``, of which ``track_running_stats`` must be False (its default: images
    are normalised by their own statistics in evaluation too), and adds:

    Args:
        activation: None, "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu", at least 0.

    The ``state_dict`` is that of ``nn.InstanceNorm2d``: ``weight`` and ``bias`` where ``affine``, else nothing.

    Shape: [N, num_features, H, W] or [num_features, H, W], the result likewise; channels_last stays channels_last.

    Source: Ulyanov, Vedaldi, Lempitsky 2016, "Instance Normalization: The Missing Ingredient for Fast Stylization".
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
    ) -> None:
        check_activation(activation, negative_slope)
        if track_running_stats:
            raise ValueError("track_running_stats: expected False, for statistics of each image; got True")
        super().__init__(num_features, eps, momentum, affine, False, device, dtype)
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() in (3, 4) and input.shape[-3] != self.num_features:
            raise ValueError(f"input: expected {self.num_features} channels; got shape {list(input.shape)}")
        return normalise(input, self, self.activation, self.negative_slope)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        return f"{text}, negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else text
