"""Sampling with one full forward pass for each sub-pixel: it works for every model, and is the oracle of the tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..distributions import Distribution
from .request import Progress, Request


def full_forward_sample(
    predict: Callable[[Tensor], Tensor],
    distribution: Distribution,
    request: Request,
    progress: Progress | None = None,
) -> Tensor:
    """Draws what is open in ``request.images``, in place, and returns them.

    Args:
        predict: from levels [n, C, H, W], to [n, channels, predictions, H, W], or without a single prediction's
            dimension; called once for each sub-pixel that is open in any image, or for each such pixel where one
            prediction is for all colours.
        distribution: what is drawn from.
        request: see :class:`Request`.
        progress: called as ``progress(done, total)`` after each of them.

    Raises:
        ValueError: no level can be drawn from a prediction.
    """
    images, free = request.images, request.free
    # In drawing order: [row, column, colour].
    open_positions = free.any(0).permute(1, 2, 0).nonzero().tolist()
    last: tuple[int, int, int] | None = None
    for done, (row, column, colour) in enumerate(open_positions, 1):
        here = images[:, colour, row, column]
        place = (distribution.prediction_of(colour), row, column)
        if place != last:
            predicted = predict(images).view(len(images), distribution.channels, -1, *images.shape[2:])
            own = predicted[:, :, distribution.prediction_of(colour), row, column]
            last = place
        wrong = (free[:, colour, row, column] & ~distribution.is_sound(own)).nonzero()
        if len(wrong):
            raise distribution.unsound(int(wrong[0]), colour, row, column)
        drawn = distribution.draw(
            own,
            images[:, :colour, row, column],
            request.uniforms[:, colour, row, column],
            request.temperature,
            request.top_k,
        )
        here.copy_(torch.where(free[:, colour, row, column], drawn.to(images.dtype), here))
        if progress is not None:
            progress(done, len(open_positions))
    return images
