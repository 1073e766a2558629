"""A distribution of the user's own: a function that draws levels from what a model predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Distribution

Draw = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Custom(Distribution):
    """Levels of a sub-pixel as a function draws them.

    Attributes:
        numbers: that the model predicts for a sub-pixel.
        function: (numbers [N, channels] in the model's dtype, uniforms float64 [N] in [0, 1)) -> whole levels [N] in
            0 .. levels - 1. The same numbers must give the same levels, whatever else is in the batch.
    """

    levels: int
    colours: int
    numbers: int
    function: Draw

    name = "custom"
    kind = "draw_categorical"  # in native programs, which stop before it and never draw themselves

    @property
    def channels(self) -> int:
        return self.numbers

    @property
    def predictions(self) -> int:
        return self.colours

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        raise NotImplementedError("a function that draws has no likelihood")

    def is_sound(self, parameters: Tensor) -> Tensor:
        return ~parameters.isnan().any(1)

    def unsound(self, image: int, channel: int, row: int, column: int) -> ValueError:
        return ValueError(
            f"parameters: expected numbers; got NaN at image {image}, channel {channel}, row {row}, column {column}"
        )

    def draw(
        self, parameters: Tensor, earlier: Tensor, uniforms: Tensor, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        if bool(parameters.isnan().any()):  # is_sound tells, with the place; the function does not have to stand it
            parameters = torch.where(parameters.isnan(), 0, parameters)
        drawn = self.function(parameters, uniforms.double())
        if not isinstance(drawn, Tensor) or drawn.shape != uniforms.shape:
            found = list(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
            raise ValueError(f"distribution: expected the function to give levels {list(uniforms.shape)}; got {found}")
        levels = drawn.long()
        whole = not drawn.dtype.is_floating_point or bool((levels == drawn).all())
        least, most = map(int, levels.aminmax())
        if not whole or least < 0 or most >= self.levels:
            raise ValueError(
                f"distribution: expected the function to give whole levels 0 .. {self.levels - 1}; got "
                f"{drawn.min().item():g} .. {drawn.max().item():g}"
            )
        return levels

    def check_options(self, temperature: float, top_k: int | None) -> None:
        for name, value, neutral in (("temperature", temperature, 1.0), ("top_k", top_k, None)):
            if value != neutral:
                raise ValueError(f"{name}: expected {neutral} with a function of your own that draws; got {value!r}")
