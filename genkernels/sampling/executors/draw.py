"""Drawing a level from logits: the one definition that every way of sampling follows."""

from __future__ import annotations

import math

from torch import Tensor


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
