"""Masked convolutions and the small PixelCNN in plain PyTorch, as public code writes them.

Each layer multiplies its weight by a mask and calls ``conv2d``; the ReLUs are layers of their own; sampling
draws with ``torch.multinomial`` from one full forward pass for each pixel. Ours are timed against them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import PixelCNN
from ..nn import MaskedConv2d


class PlainMaskedConv2d(nn.Conv2d):
    """``conv2d(x, weight * mask)``, [N, C, H, W] -> [N, O, H, W]; grey images only (no colour groups)."""

    mask: Tensor

    def __init__(self, mask_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        height, width = self.kernel_size
        mask = torch.ones_like(self.weight)
        mask[:, :, height // 2, width // 2 + (mask_type == "B") :] = 0
        mask[:, :, height // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class PlainPixelCNN(nn.Module):
    """The twin of a grey :class:`~genkernels.models.PixelCNN` without residual blocks, with a copy of its
    weights.

    Raises:
        ValueError: the model is in colour or has residual blocks.
    """

    def __init__(self, model: PixelCNN) -> None:
        super().__init__()
        if model.in_channels != 1 or model.config["residual"]:
            raise ValueError("model: expected a grey PixelCNN without residual blocks")
        self.levels = model.levels
        layers: list[nn.Module] = []
        for ours in model.layers:
            assert isinstance(ours, MaskedConv2d)
            kernel = ours.kernel_size[0]
            conv = PlainMaskedConv2d(ours.mask_type, ours.in_channels, ours.out_channels, kernel, padding=kernel // 2)
            conv.load_state_dict({"mask": conv.mask, **ours.state_dict()})
            layers.append(conv)
            if ours.activation == "relu":
                layers.append(nn.ReLU())
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Levels [N, 1, H, W] -> logits [N, levels, H, W]."""
        return self.net(x.float() / (self.levels - 1))

    def loss(self, x: Tensor) -> Tensor:
        """Mean nats per sub-pixel of levels [N, 1, H, W]."""
        return F.cross_entropy(self(x), x[:, 0].long())

    @torch.no_grad()
    def sample(self, n: int, height: int, width: int) -> Tensor:
        """Levels, uint8 [n, 1, H, W]."""
        images = torch.zeros(n, 1, height, width, dtype=torch.uint8)
        for row in range(height):
            for column in range(width):
                probabilities = F.softmax(self(images)[:, :, row, column], dim=1)
                images[:, 0, row, column] = torch.multinomial(probabilities, 1)[:, 0].to(torch.uint8)
        return images
