"""Alternatives timed against each other in one run: medians over rounds in which all take turns.

All run in the same process, so that whatever disturbs the machine disturbs them alike. A speed-up is always the ratio
of two medians of one such run.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median, 20th and 80th percentile over ``rounds`` turns of ``calls`` calls each."""

    median: float
    p20: float
    p80: float
    rounds: int
    calls: int

    def times(self, count: float) -> Timing:
        """The seconds of ``count`` such calls; a fraction where a call was many of what is meant."""
        return Timing(self.median * count, self.p20 * count, self.p80 * count, self.rounds, self.calls)


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    min_rounds: int = 5,
    max_rounds: float = math.inf,
    min_turn: float = 2e-3,
    warm_up: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time the callables in turn and return the seconds that one call of each takes.

    After a warm-up (which includes any compilation), each round gives every callable one turn. The one that starts
    rotates from round to round, and every second round runs backwards, so that none always follows the same
    neighbour. A turn is as many calls as fill ``min_turn``, so that the clock's resolution does not count.

    Args:
        calls: what to time, by name.
        seconds: rounds are run until this much time has passed (warm-up excluded) ...
        min_rounds: ... and there have been this many ...
        max_rounds: ... or this many, whatever the time.
        min_turn: seconds that a turn should last at least.
        warm_up: calls of each before any is timed.
        clock: returns seconds; replaced in tests.
    """
    names = list(calls)
    turn_calls = {name: _calls_per_turn(calls[name], min_turn, warm_up, clock) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    with _no_garbage_collection():
        begin = clock()
        done = 0
        while done < min_rounds or (done < max_rounds and clock() - begin < seconds):
            for name in order_of_round(names, done):
                call, repeat = calls[name], turn_calls[name]
                start = clock()
                for _ in range(repeat):
                    call()
                samples[name].append((clock() - start) / repeat)
            done += 1
    return {name: summarise(samples[name], turn_calls[name]) for name in names}


def order_of_round(names: Sequence[str], index: int) -> list[str]:
    """The names in their order in round ``index``: rotated by one each round, and backwards in odd ones."""
    shift = index % max(len(names), 1)
    order = [*names[shift:], *names[:shift]]
    return order[::-1] if index % 2 else order


def summarise(samples: Sequence[float], calls: int) -> Timing:
    """Median and percentiles of the seconds per call."""
    p20, median, p80 = (float(value) for value in np.percentile(samples, [20, 50, 80]))
    return Timing(median, p20, p80, len(samples), calls)


def _calls_per_turn(call: Callable[[], object], min_turn: float, warm_up: int, clock: Callable[[], float]) -> int:
    quickest = math.inf
    for _ in range(warm_up):
        start = clock()
        call()
        quickest = min(quickest, clock() - start)
    return max(1, math.ceil(min_turn / quickest)) if quickest > 0 else 1


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
