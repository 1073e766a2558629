"""Initial weights that keep the size of the features, counted over the taps that are really there."""

from __future__ import annotations

import math

import torch
from torch import nn

from .masked_conv import MaskedConv2d


@torch.no_grad()
def init_live_taps(layer: nn.Conv2d, variance: float = 2.0) -> None:
    """Weights from N(0, variance / fan-in), the fan-in counted over live taps alone, and zero biases.

    2 keeps the size of the features before a ReLU (He et al. 2015), 1 without one. The default initialisation
    of ``nn.Conv2d`` counts the masked half as well, and a deep stack then starts with features near zero.
    """
    live = layer.live_taps().sum().item() if isinstance(layer, MaskedConv2d) else layer.weight.numel()
    nn.init.normal_(layer.weight, 0, math.sqrt(variance / max(live / layer.out_channels, 1)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
