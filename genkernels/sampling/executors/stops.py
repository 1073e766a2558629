"""A run that stops before every draw: where it stands, and what is to be drawn from there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..program.instructions import ROW
from ..program.program import Program


class Stop(NamedTuple):
    """A place where levels are wanted.

    Attributes:
        row, column: of the pixel.
        colour: of the sub-pixel; None where all colours of the pixel are drawn together.
        parameters: what they are drawn from: [n, channels], or [n, colours, channels] for all colours. The array is
            used again for the next place.
    """

    row: int
    column: int
    colour: int | None
    parameters: np.ndarray


def drawn_together(program: Program) -> bool:
    """Whether no colour of a pixel waits for another one, and there are several."""
    if program.distribution.predictions != program.colours or program.colours == 1:
        return False
    return max(program.values[program.logits].labels) in (ROW, 0)


def known_everywhere(known: Tensor) -> Tensor:
    """Sub-pixels that are known in all images: bool [n, C, H, W] -> [C, H, W]."""
    return known.all(0).contiguous()
