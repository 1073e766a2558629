"""The base class of distributions of a pixel's levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Distribution(ABC):
    """How the levels of a pixel's colours are distributed, given what a model predicts for the pixel.

    A model predicts ``predictions`` times ``channels`` numbers for each pixel, in a tensor
    [N, channels, predictions, H, W]; or, where there is one prediction for all colours, [N, channels, H, W].

    Attributes:
        name: what options call it.
        kind: of the native executors' instruction that draws from it; see csrc/sampler_records.h.
        levels: values that a sub-pixel takes.
        colours: sub-pixels of a pixel, drawn in this order.
        components: of a mixture; 0 where it is none.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    levels: int
    colours: int
    components: int = 0

    @property
    @abstractmethod
    def channels(self) -> int:
        """Numbers in a prediction."""

    @property
    @abstractmethod
    def predictions(self) -> int:
        """Predictions for a pixel: one for each colour from those before it, or one for all of them."""

    @property
    def outputs(self) -> int:
        """Numbers that a model gives for a prediction."""
        return self.channels

    def from_outputs(self, outputs: Tensor) -> Tensor:
        """The predictions from what a model gives: [N, outputs, ...] -> [N, channels, ...]."""
        return outputs

    def prediction_of(self, colour: int) -> int:
        """The prediction that a colour is drawn from."""
        return colour if self.predictions > 1 else 0

    @abstractmethod
    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Log-probability of each image, in nats: predictions, levels [N, C, H, W] -> [N], float32 or wider."""

    @abstractmethod
    def is_sound(self, parameters: Tensor) -> Tensor:
        """Whether something can be drawn from a prediction, [N, channels] -> bool [N]."""

    @abstractmethod
    def unsound(self, image: int, channel: int, row: int, column: int) -> ValueError:
        """The error for a prediction from which nothing can be drawn."""

    @abstractmethod
    def draw(
        self, parameters: Tensor, earlier: Tensor, uniforms: Tensor, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        """Levels of one colour, drawn by inverse CDF from one number each: int64 [N].

        Args:
            parameters: [N, channels], the prediction that the colour is drawn from.
            earlier: [N, k], the levels of the colours before it, which say that it is colour k.
            uniforms: [N] in [0, 1).
            temperature, top_k: see the distribution.
        """

    def probabilities(self, parameters: Tensor, earlier: Tensor) -> Tensor:
        """Those of all levels of one colour: arguments of :meth:`draw` -> float64 [N, levels], each row sums to 1.

        Raises:
            ValueError: the distribution does not tell them.
        """
        raise ValueError(f"distribution: {self.name!r} does not tell the probabilities of levels")

    def check_options(self, temperature: float, top_k: int | None) -> None:
        """Raises a ValueError where an option of :meth:`draw` is given that the distribution does not have."""
        return
