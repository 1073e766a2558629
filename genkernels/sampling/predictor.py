"""Models that describe themselves to a sampler."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..distributions import Distribution


class Predictor:
    """Base of this package's autoregressive models, which :func:`genkernels.fast_sampler` takes as they are.

    Attributes:
        in_channels: sub-pixels of a pixel.
        levels: values that a sub-pixel takes.
        distribution: of the levels, given what the model predicts.
    """

    in_channels: int
    levels: int
    distribution: Distribution

    def predict(self, scaled: Tensor, condition: Any) -> Tensor:
        """What the distribution takes, logits [N, levels, C, H, W] for the categorical one, from images [N, C, H, W]
        scaled to [0, 1]. For subclasses."""
        raise NotImplementedError
