"""Sampling with one full forward pass for each sub-pixel: it works for every model, and is the oracle of the tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .executors.draw import draw, has_level, no_level
from .request import Progress, Request


def full_forward_sample(
    logits: Callable[[Tensor], Tensor], request: Request, progress: Progress | None = None
) -> Tensor:
    """Draws what is open in ``request.images``, in place, and returns them.

    Args:
        logits: from levels, uint8 [n, C, H, W], to [n, levels, C, H, W]; called once for each sub-pixel that is open in
            any image.
        request: see :class:`Request`.
        progress: called as ``progress(done, total)`` after each of them.

    Raises:
        ValueError: no level can be drawn from the logits.
    """
    images, free = request.images, request.free
    # In drawing order: [row, column, colour].
    open_positions = free.any(0).permute(1, 2, 0).nonzero().tolist()
    for done, (row, column, colour) in enumerate(open_positions, 1):
        here = images[:, colour, row, column]
        own = logits(images)[:, :, colour, row, column]
        wrong = (free[:, colour, row, column] & ~has_level(own)).nonzero()
        if len(wrong):
            raise no_level(int(wrong[0]), colour, row, column)
        drawn = draw(
            own,
            request.uniforms[:, colour, row, column],
            request.temperature,
            request.top_k,
        )
        here.copy_(torch.where(free[:, colour, row, column], drawn.to(images.dtype), here))
        if progress is not None:
            progress(done, len(open_positions))
    return images
