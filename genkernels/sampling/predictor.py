"""What a model takes and gives, and models that say so themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..distributions import Distribution
from .output_layout import DOCUMENTED


@dataclass(frozen=True)
class Interface:
    """What a model takes and gives.

    Attributes:
        index: whether it takes the levels themselves, int64, and not the numbers that stand for them.
        layout: of what it gives, one of :data:`genkernels.sampling.output_layout.LAYOUTS`.
    """

    index: bool = False
    layout: str = DOCUMENTED

    def seen(self, images: Tensor, table: Tensor) -> Tensor:
        """Levels [N, C, H, W] as the model takes them; ``table`` [levels] has the number for each level."""
        return images.long() if self.index else table[images.long()]


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
