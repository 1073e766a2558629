"""Timing of alternatives: turns, medians, budgets and warm-up."""

from __future__ import annotations

import math

import pytest

from genkernels.timing import interleave, order_of_round


class FakeMachine:
    """Callables that take as long as they say, and the clock that they turn."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def clock(self):
        return self.now

    def call(self, name, durations):
        left = iter(durations)

        def run():
            self.log.append(name)
            self.now += next(left)

        return run


def test_timing_takes_turns_and_keeps_medians():
    fake = FakeMachine()
    warm_up = [9.0, 1.0, 1.0]
    calls = {
        "a": fake.call("a", [*warm_up, 1.0, 100.0, 1.0, 1.0, 1.0]),  # one disturbance
        "b": fake.call("b", [*warm_up, 2.0, 3.0, 4.0, 5.0, 6.0]),
        "c": fake.call("c", [*warm_up, *[7.0] * 5]),
    }
    timings = interleave(calls, seconds=0, min_rounds=5, clock=fake.clock)
    assert {name: t.median for name, t in timings.items()} == {"a": 1.0, "b": 4.0, "c": 7.0}
    assert timings["b"].p20 == pytest.approx(2.8) and timings["b"].p80 == pytest.approx(5.2)
    assert timings["a"].rounds == 5 and timings["a"].calls == 1
    rounds = ["".join(fake.log[9 + 3 * i : 12 + 3 * i]) for i in range(5)]
    assert rounds == ["abc", "acb", "cab", "cba", "bca"]


def test_timing_fills_its_budget_and_repeats_short_calls():
    fake = FakeMachine()
    calls = {"short": fake.call("short", [0.001] * 10**6), "long": fake.call("long", [0.25] * 10**6)}
    timings = interleave(calls, seconds=2.0, min_rounds=3, min_turn=0.01, clock=fake.clock)
    assert timings["short"].calls == 10 and timings["long"].calls == 1
    assert timings["short"].median == pytest.approx(0.001)
    assert timings["short"].rounds == math.ceil(2.0 / 0.26)


def test_nobody_always_starts():
    names = ["a", "b", "c"]
    starts = [order_of_round(names, index)[0] for index in range(6)]
    assert sorted(starts) == ["a", "a", "b", "b", "c", "c"]


def test_timing_ends_after_its_most_rounds_and_warms_up_as_often_as_told():
    fake = FakeMachine()
    calls = {"a": fake.call("a", [9.0, *[1.0] * 4]), "b": fake.call("b", [9.0, *[2.0] * 4])}
    timings = interleave(calls, seconds=100, min_rounds=2, max_rounds=4, min_turn=0, warm_up=1, clock=fake.clock)
    assert {name: (t.median, t.rounds, t.calls) for name, t in timings.items()} == {"a": (1.0, 4, 1), "b": (2.0, 4, 1)}
    assert len(fake.log) == 10
