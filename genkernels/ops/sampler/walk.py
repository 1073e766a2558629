"""What an executor is given besides the program: the images, what is open in them, and how to draw it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(eq=False)
class Walk:
    """One pass over a batch of images.

    Attributes:
        images: uint8 [n, C, H, W], the known levels in place; what is drawn is written here.
        free: bool [n, C, H, W], true where a level is to be drawn.
        uniforms: floating-point [n, C, H, W] in [0, 1).
        temperature: above 0.
        top_k: None, or at least 1; see :func:`genkernels.ops.sampler.drawing.draw`.
        last: (row, column, colour) of the last sub-pixel that is open in any image: nothing beyond it is computed.
        row_done: to be called with y after each row.
        logits: None, or [n, levels, C, H, W] to write the logits of every visited sub-pixel to.
    """

    images: Tensor
    free: Tensor
    uniforms: Tensor
    temperature: float
    top_k: int | None
    last: tuple[int, int, int]
    row_done: Callable[[int], None]
    logits: Tensor | None = None
