"""Every kernel of the wavefront LSTM against float64, over a grid in which every two options meet.

A failing case prints its options as the test's id; `check(Case(...))` runs it alone.
"""

import dataclasses

import pytest
import torch
from helpers.grids import (
    DIRECT,
    DTYPES,
    ISAS,
    LAYOUTS,
    assert_accurate,
    check_cases_under,
    laid_out,
    name_of,
    nan_in_fresh_memory,
    pairwise,
    with_rounding,
)
from helpers.wavefront_directions import OTHER_TAPS, SWEEPS, plain_bilstm, plain_sweep, rounded_inputs, with_gradients
from torch import Tensor

from genkernels.ops import diagonal_bilstm

WAYS = {str(sweep): sweep for sweep in (*SWEEPS, *OTHER_TAPS)}
BOTH = "both"


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: everything that selects a path through the kernels."""

    dtype: torch.dtype = torch.float32
    way: str = BOTH
    batch: int = 2
    size: tuple[int, int] = (5, 7)
    units: int = 5
    states: bool = True
    checkpoint: bool = False
    gates_layout: str = "contiguous"
    grad_layout: str = "contiguous"
    threads: int = 2

    __str__ = name_of


AXES = {
    "dtype": DTYPES,
    "way": (BOTH, *WAYS),
    "batch": (0, 1, 3, 9),
    # Fronts of one cell, single rows and columns, wide, tall.
    "size": ((1, 1), (1, 9), (11, 1), (5, 5), (3, 8), (13, 4), (9, 10)),
    # Fewer than a vector, exactly some, one more than a panel of any instruction set.
    "units": (1, 3, 8, 16, 17, 33, 64),
    "states": (True, False),
    "checkpoint": (True, False),
    "gates_layout": LAYOUTS,
    "grad_layout": LAYOUTS,
    "threads": (1, 2, 3),
}
CASES = [Case(**row) for row in pairwise(AXES)]


def tensors(case: Case) -> tuple[list[Tensor | None], Tensor]:
    """What the function takes, and a gradient of its result; in float64 with the values of the case's dtype."""
    sweep = None if case.way == BOTH else WAYS[case.way]
    kept, grad = rounded_inputs(case.size, sweep, case.dtype, batch=case.batch, units=case.units, states=case.states)
    kept = [laid_out(t, case.gates_layout) if t is not None and t.dim() == 4 else t for t in kept]
    return kept, laid_out(grad, case.grad_layout)


def in_dtype(values: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Cast with the strides kept, those of slices too."""
    return [t if t is None else _strided_cast(t, dtype) for t in values]


def _strided_cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    storage = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()).to(dtype)
    return torch.as_strided(storage, t.shape, t.stride(), t.storage_offset())


def check(case: Case) -> None:
    """The operator's result and gradients are within the bound of grids.py."""
    inputs, grad = tensors(case)

    def ours(*arguments):
        full = iter(arguments)
        filled = [None if t is None else next(full) for t in inputs]
        function = diagonal_bilstm if case.way == BOTH else WAYS[case.way]
        return function(*filled, checkpoint=case.checkpoint)

    def plain(*arguments):
        full = iter(arguments)
        filled = [None if t is None else next(full) for t in inputs]
        if case.way == BOTH:
            zeros = filled[0].new_zeros(case.units)
            return plain_bilstm(*(zeros if t is None else t for t in filled))
        return plain_sweep(*filled, WAYS[case.way])

    present = [t for t in inputs if t is not None]
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        with nan_in_fresh_memory():
            got = with_gradients(ours, in_dtype(present, case.dtype), in_dtype([grad], case.dtype)[0])
        exact, units = with_rounding(
            lambda *t: with_gradients(plain, t[:-1], t[-1]), [*present, grad], torch.finfo(torch.float32).eps
        )
    finally:
        torch.set_num_threads(before)
    if case.way == BOTH and case.dtype != torch.float32:
        units[0] += torch.finfo(case.dtype).eps / DIRECT  # both sweeps' h, below one, are rounded before they are added
    for index, results in enumerate(zip(got, exact, units, strict=True)):
        assert_accurate(f"result {index}", *results)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_result_and_gradients_are_within_the_bound(case):
    check(case)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_keeps_the_bound_and_reads_no_unwritten_scratch(isa):
    check_cases_under(isa, "ops.test_wavefront_lstm_grid")


@pytest.mark.slow
@pytest.mark.parametrize("way", [BOTH, "row-1,0,1"])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_long_sweep_stays_within_the_bound(way, batch):
    check(Case(way=way, batch=batch, size=(28, 28), units=32))
