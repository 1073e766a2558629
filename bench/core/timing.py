"""Timing alternatives against each other in one run, and checking first that they compute the same.

All alternatives take turns in the same process, so that whatever disturbs the machine disturbs them alike. A
speed-up is always the ratio of two medians of one such run.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import Tensor

WARM_UP_CALLS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median, 20th and 80th percentile over ``rounds`` turns of ``calls`` calls each."""

    median: float
    p20: float
    p80: float
    rounds: int
    calls: int


class MismatchError(AssertionError):
    """Alternatives that should compute the same do not: nothing may be timed."""


def check_equal(
    results: Mapping[str, Sequence[Tensor]], reference: Sequence[Tensor], *, tolerance: float = 1e-5
) -> None:
    """Raise a MismatchError unless every result equals the reference, tensor by tensor.

    Args:
        results: what each alternative computed, by name: an output and its gradients, say.
        reference: the same in float64.
        tolerance: the largest difference allowed, relative to the reference's largest magnitude.
    """
    for name, tensors in results.items():
        if len(tensors) != len(reference):
            raise MismatchError(f"{name}: {len(tensors)} results where the reference has {len(reference)}")
        for index, (got, expected) in enumerate(zip(tensors, reference, strict=True)):
            if got.shape != expected.shape:
                shapes = f"shape {list(got.shape)}, expected {list(expected.shape)}"
                raise MismatchError(f"{name}, result {index}: {shapes}")
            if expected.numel() == 0:
                continue
            difference = (got.detach().double() - expected.detach().double()).abs().max().item()
            size = expected.detach().abs().max().item()
            if not difference <= tolerance * size:  # a NaN fails this too
                raise MismatchError(
                    f"{name}, result {index}: differs from the reference by {difference:.3g} "
                    f"where the largest value is {size:.3g}"
                )


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    min_rounds: int = 5,
    min_turn: float = 2e-3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time the callables in turn and return the seconds that one call of each takes.

    After a warm-up (which includes any compilation), each round gives every callable one turn. Who starts
    rotates from round to round, and every second round runs backwards, so that nobody always follows the same
    neighbour. A turn is as many calls as fill ``min_turn``, so that the clock's resolution does not count.

    Args:
        calls: what to time, by name.
        seconds: rounds are run until this much time has passed (warm-up excluded) ...
        min_rounds: ... and there have been this many.
        min_turn: seconds that a turn should last at least.
        clock: returns seconds; replaced in tests.
    """
    names = list(calls)
    turn_calls = {name: _calls_per_turn(calls[name], min_turn, clock) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    with _no_garbage_collection():
        begin = clock()
        done = 0
        while done < min_rounds or clock() - begin < seconds:
            for name in order_of_round(names, done):
                call, repeat = calls[name], turn_calls[name]
                start = clock()
                for _ in range(repeat):
                    call()
                samples[name].append((clock() - start) / repeat)
            done += 1
    return {name: summarise(samples[name], turn_calls[name]) for name in names}


def order_of_round(names: Sequence[str], index: int) -> list[str]:
    """Who comes when in round ``index``: rotated by one each round, and backwards in odd ones."""
    shift = index % max(len(names), 1)
    order = [*names[shift:], *names[:shift]]
    return order[::-1] if index % 2 else order


def summarise(samples: Sequence[float], calls: int) -> Timing:
    """Median and percentiles of the seconds per call."""
    p20, median, p80 = (float(value) for value in np.percentile(samples, [20, 50, 80]))
    return Timing(median, p20, p80, len(samples), calls)


def geometric_mean(ratios: Collection[float]) -> float:
    """The mean of speed-ups: it says the same whichever side is called the baseline."""
    return math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))


def _calls_per_turn(call: Callable[[], object], min_turn: float, clock: Callable[[], float]) -> int:
    quickest = math.inf
    for _ in range(WARM_UP_CALLS):
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
