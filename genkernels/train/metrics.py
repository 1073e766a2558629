"""How good a model is: the likelihood of images that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models import AutoregressiveModel, bits_per_dim


@dataclass(frozen=True)
class Evaluation:
    """Negative log-likelihood over a set of images.

    Attributes:
        images: how many.
        nats: mean nats per image.
        standard_error: of that mean; NaN for one image.
        bits_per_dim: mean bits per sub-pixel.
    """

    images: int
    nats: float
    standard_error: float
    bits_per_dim: float


@torch.no_grad()
def evaluate(
    model: AutoregressiveModel,
    images: Tensor,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Mean negative log-likelihood of images under a model, which is put back into the mode that it was in.

    Args:
        model: on any device.
        images: levels, [N, C, H, W] with N at least 1.
        batch_size: images per forward pass.
        progress: called as ``progress(done, total)`` after each batch.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    nats = []
    try:
        for batch in images.split(batch_size):
            nats.append(-model.log_prob(batch.to(device)).double().cpu())
            if progress is not None:
                progress(sum(map(len, nats)), len(images))
    finally:
        model.train(was_training)
    each = torch.cat(nats)
    mean = each.mean().item()
    error = each.std().item() / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return Evaluation(len(each), mean, error, bits_per_dim(mean, images[0].numel()))
