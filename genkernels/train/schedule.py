"""Schedules of the learning rate: what it is multiplied with at each step of a run."""

from __future__ import annotations

import math
from collections.abc import Callable


def _cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def _step(share: float) -> float:
    return 0.1 ** ((share >= 0.5) + (share >= 0.75))


# Of the share of the run that is done, 0 .. 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "cosine": _cosine,  # Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5
    "step": _step,  # a tenth after half of the run, a hundredth after three quarters (He et al. 2016, section 4.2)
}


def factor(schedule: str, warmup: int, length: int | None) -> Callable[[int], float]:
    """The factor of the learning rate by step, from 0 on.

    Args:
        schedule: one of ``SCHEDULES``.
        warmup: over so many steps the rate rises linearly to its full size; the schedule begins behind them.
        length: steps of the run, warm-up included; behind them the factor stays. None for "constant".
    """
    shape = SCHEDULES[schedule]

    def at(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return shape(0.0 if length is None else min(1.0, (step - warmup) / max(1, length - warmup)))

    return at
