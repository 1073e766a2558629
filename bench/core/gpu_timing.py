"""Timing on a GPU: calls as CUDA graphs in turn, or as launches that queue up behind each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch

from genkernels.timing import Timing, interleave, order_of_round, summarise

FLUSH_BYTES = 1 << 28  # several times the L2 cache
WARM_UP_CALLS = 3
L2_FLUSHED = "flushed before each call"  # what a report of interleave_on_gpu says
TURN = 0.02  # seconds between two waits for the GPU
Result = TypeVar("Result")


def captured(call: Callable[[], Result]) -> Callable[[], Result]:
    """The call as one CUDA graph, so that nothing of the host is timed; it gives the same tensors every time."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


def interleave_on_gpu(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, min_rounds: int = 11
) -> dict[str, Timing]:
    """Seconds per call of each, as :func:`genkernels.timing.interleave`: graphs in turn, L2 flushed before each."""
    replays = {name: captured(call) for name, call in calls.items()}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    samples: dict[str, list[float]] = {name: [] for name in calls}
    begin, done = time.perf_counter(), 0
    while done < min_rounds or time.perf_counter() - begin < seconds:
        events = []
        for name in order_of_round(list(calls), done):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            replays[name]()
            end.record()
            events.append((name, start, end))
        torch.cuda.synchronize()
        for name, start, end in events:
            samples[name].append(start.elapsed_time(end) * 1e-3)
        done += 1
    return {name: summarise(values, 1) for name, values in samples.items()}


def interleave_queued(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, min_rounds: int = 11
) -> dict[str, Timing]:
    """As :func:`genkernels.timing.interleave`, each turn being as many calls as fill TURN, and one wait.

    A launch that hides behind the one before it counts as little as in a training loop.
    """
    repeats = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        repeats[name] = max(1, round(TURN / (time.perf_counter() - start)))

    def turn(name: str) -> Callable[[], None]:
        def run() -> None:
            for _ in range(repeats[name]):
                calls[name]()
            torch.cuda.synchronize()

        return run

    timings = interleave({name: turn(name) for name in calls}, seconds=seconds, min_rounds=min_rounds)
    return {
        name: replace(timings[name].times(1 / count), calls=timings[name].calls * count)
        for name, count in repeats.items()
    }
