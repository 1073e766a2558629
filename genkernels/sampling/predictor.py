"""Models that describe themselves to a sampler."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Predictor:
    """Base of this package's autoregressive models, which :func:`genkernels.fast_sampler` takes as they are.

    Attributes:
        in_channels: sub-pixels of a pixel.
        levels: values that a sub-pixel takes.
    """

    in_channels: int
    levels: int

    def predict(self, scaled: Tensor, condition: Any) -> Tensor:
        """Logits [N, levels, C, H, W] from images [N, C, H, W] scaled to [0, 1]. For subclasses."""
        raise NotImplementedError
