"""Every operation on tensors of any layout that PyTorch can make, drawn at random, the same ones every time.

Sizes, strides and storage offsets of each tensor are drawn by themselves: gaps, overlaps, expanded dimensions and
single ones come in all mixtures.
"""

from __future__ import annotations

import pytest
from helpers.grids import needs_native
from helpers.strided import HUGE, strided
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ops.test_strides import OPERATIONS, Call, assert_close

pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]

IMAGES = st.tuples(
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2, 8, 17]),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([1, 2, 7, 18]),
)
OUTPUTS = st.sampled_from([1, 3, 17])
STEPS = st.sampled_from([0, 1, 1, 1, 2, 3, 8, 17, 18, 40])


def layouts(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[tuple[int, ...], int]]:
    """Strides and a storage offset: a dimension is dense around those inside it, or has any step, HUGE where single."""

    def joined(order: list[int], steps: list[int], is_dense: list[bool]) -> tuple[int, ...]:
        strides, inner = [0] * len(shape), 1
        for dim in order:
            single_and_huge = shape[dim] == 1 and steps[dim] == 40
            strides[dim] = HUGE if single_and_huge else inner if is_dense[dim] else steps[dim]
            inner = max(inner, min(strides[dim], 40_000) * shape[dim])
        return tuple(strides)

    dims = len(shape)
    strides = st.builds(
        joined,
        st.permutations(range(dims)),
        st.lists(STEPS, min_size=dims, max_size=dims),
        st.lists(st.sampled_from([True, True, False]), min_size=dims, max_size=dims),
    )
    return st.tuples(strides, st.integers(0, 5))


@pytest.mark.parametrize("name", OPERATIONS)
@settings(
    max_examples=30,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_layout_gives_what_a_plain_one_does(name, data):
    call = Call(OPERATIONS[name], data.draw(IMAGES), data.draw(OUTPUTS))
    tensors = [strided(t, *data.draw(layouts(tuple(t.shape)))) for t in call.values]
    second = data.draw(st.sampled_from([False] * 5 + [True]))
    assert_close(call.results(tensors, second=second), call.expected(tensors, second=second), tensors)
