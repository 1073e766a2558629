"""Categorical distributions: a logit for each level of each sub-pixel, and the definition of a draw from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Distribution


def has_level(logits: Tensor) -> Tensor:
    """Whether there is a level to draw from logits [N, levels], bool [N]: no NaN, no +inf, and not -inf alone."""
    return logits.amax(1).isfinite()


def no_level(image: int, channel: int, row: int, column: int) -> ValueError:
    """The error for logits from which no level can be drawn."""
    return ValueError(
        "logits: expected finite numbers, or -inf for some of the levels; got NaN, +inf or -inf for all levels at "
        f"image {image}, channel {channel}, row {row}, column {column}"
    )


def draw(logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
    """Levels drawn by inverse CDF: logits [N, levels], uniforms [N] in [0, 1) -> int64 [N].

    The level is the number of entries of ``cumsum(softmax(logits / temperature))``, all in float64, that are
    at most u times the last of them. With ``top_k``, levels whose logit is below the k-th largest have no probability
    (all that equal the k-th stay).
    """
    shifted = logits.double()
    if top_k is not None and top_k < logits.shape[1]:
        smallest = shifted.topk(top_k, 1).values[:, -1:]
        shifted = shifted.masked_fill(shifted < smallest, -math.inf)
    # At most 0 before the division, so that a tiny temperature cannot overflow.
    shifted = (shifted - shifted.amax(1, keepdim=True)) / temperature
    cdf = shifted.exp().cumsum(1)
    return (cdf <= uniforms.double()[:, None] * cdf[:, -1:]).sum(1).clamp_max(logits.shape[1] - 1)


def log_likelihood(logits: Tensor, images: Tensor) -> Tensor:
    """Log-probability of each image under its logits, in nats: [N, levels, C, H, W], [N, C, H, W] -> [N].

    The softmax runs over whatever order the logits already have in memory, without a copy: levels outermost
    (contiguous features) or innermost (channels_last features). 16-bit logits are summed in float32.
    """
    batch, levels, colours, height, width = logits.shape
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    targets = images.long()
    if logits.stride(1) == 1:
        flat = logits.permute(0, 3, 4, 2, 1).reshape(-1, levels)
        nats = F.cross_entropy(flat, targets.permute(0, 2, 3, 1).reshape(-1), reduction="none")
    else:
        flat = logits.transpose(1, 2).reshape(batch * colours, levels, height * width)
        nats = F.cross_entropy(flat, targets.reshape(batch * colours, height * width), reduction="none")
    return -nats.view(batch, colours * height * width).sum(1)


@dataclass(frozen=True)
class Categorical(Distribution):
    """A probability for each level of each sub-pixel: a prediction has the logits of one colour, given those before.

    ``temperature`` divides the logits; ``top_k`` leaves the k most likely levels. See :func:`draw`.
    """

    levels: int
    colours: int

    name = "categorical"
    kind = "draw_categorical"

    @property
    def channels(self) -> int:
        return self.levels

    @property
    def predictions(self) -> int:
        return self.colours

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        return log_likelihood(parameters, images)

    def is_sound(self, parameters: Tensor) -> Tensor:
        return has_level(parameters)

    def unsound(self, image: int, channel: int, row: int, column: int) -> ValueError:
        return no_level(image, channel, row, column)

    def probabilities(self, parameters: Tensor, earlier: Tensor) -> Tensor:
        return parameters.double().softmax(1)

    def draw(
        self, parameters: Tensor, earlier: Tensor, uniforms: Tensor, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        return draw(parameters, uniforms, temperature, top_k)


@dataclass(frozen=True)
class Bernoulli(Categorical):
    """The categorical one of two levels, of which a model gives one logit: that of level 1, level 0 having 0."""

    name = "bernoulli"

    def __post_init__(self) -> None:
        if self.levels != 2:
            raise ValueError(f"levels: expected 2 with distribution 'bernoulli'; got {self.levels}")

    @property
    def outputs(self) -> int:
        return 1

    def from_outputs(self, outputs: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(outputs), outputs], 1)
