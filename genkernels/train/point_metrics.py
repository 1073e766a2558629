"""Metrics of generated points: modes that were missed, and points that are near none."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .data.points import Mixture
from .metrics import Measure

GOOD = 3.0  # standard deviations: a point nearer than that to a centre is a good one
LEAST_SHARE = 0.001  # of all points that a mode needs, good ones, to count as covered


def mode_measures(points: Tensor, mixture: Mixture) -> list[Measure]:
    """Modes that points [N, 2] do not cover, and the share of points that are within 3 standard deviations of a mode.

    A mode is covered if at least a thousandth of all points are good ones of it.

    Source: Srivastava et al. 2017, "VEEGAN: Reducing Mode Collapse in GANs using Implicit Variational Learning",
    section 4.1, whose modes need one good point.
    """
    distance, nearest = torch.cdist(points, mixture.centres).min(1)
    good = distance <= GOOD * mixture.spread
    counts = nearest[good].bincount(minlength=len(mixture.centres))
    missed = int((counts < max(1, LEAST_SHARE * len(points))).sum())
    share = good.double().mean().item()
    return [
        Measure("missed_modes", f"modes missed, of {len(mixture.centres)}", missed, math.nan, len(points)),
        Measure("good_share", "share of good points", share, math.sqrt(share * (1 - share) / len(points)), len(points)),
    ]
