"""Points of the plane from mixtures of Gaussians whose modes can be counted: a ring of 8, and a grid of 25.

Source: the usual test beds of GANs, as in Srivastava et al. 2017, "VEEGAN", section 4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TRAIN_POINTS, TEST_POINTS = 50_000, 10_000


@dataclass(frozen=True, eq=False)
class Mixture:
    """Equally likely Gaussians of one spread.

    Attributes:
        centres: float32 [modes, 2].
        spread: the standard deviation of both coordinates.
    """

    centres: Tensor
    spread: float

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points float32 [n, 2, 1, 1], which stand for images of two channels and one pixel, and their modes [n]."""
        modes = torch.randint(0, len(self.centres), (n,), generator=generator)
        points = self.centres[modes] + self.spread * torch.randn(n, 2, generator=generator)
        return points[:, :, None, None], modes


def _ring() -> Tensor:
    angles = torch.arange(8) * (2 * math.pi / 8)
    return 2 * torch.stack([angles.cos(), angles.sin()], 1)


MIXTURES = {
    "ring": Mixture(_ring(), 0.02),
    "grid": Mixture(torch.cartesian_prod(*[2.0 * torch.arange(-2.0, 3.0)] * 2), 0.05),
}
