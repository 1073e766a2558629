"""Bad arguments of the recurrences are refused in words: which argument, what was expected, what came."""

import re

import pytest
import torch
from torch import Tensor

from genkernels.ops import diagonal_bilstm, diagonal_lstm, row_lstm

GATES, ROW_WEIGHT, WEIGHT, STATE = (2, 12, 5, 6), (3, 12, 3), (2, 12, 3), (3,)


def tensors(*values) -> list:
    return [torch.randn(v) if isinstance(v, tuple) else v for v in values]


def call_row(gates=GATES, weight=ROW_WEIGHT, h0=STATE, c0=STATE, **options) -> Tensor:
    return row_lstm(*tensors(gates, weight, h0, c0), **options)


def call_diagonal(gates=GATES, weight=WEIGHT, h0=STATE, c0=STATE, **options) -> Tensor:
    return diagonal_lstm(*tensors(gates, weight, h0, c0), **options)


def call_both(gates_left=GATES, gates_right=GATES, weight_left=WEIGHT, weight_right=WEIGHT, h0_right=STATE, **options):
    return diagonal_bilstm(
        *tensors(gates_left, gates_right, weight_left, weight_right, None, None, h0_right), **options
    )


def test_the_calls_that_the_others_spoil_are_good():
    for call in (call_row, call_diagonal, call_both):
        assert call().shape == (2, 3, 5, 6)


half = torch.zeros(GATES).half()
BAD = {
    "two dimensions": (call_row, {"gates": (5, 6)}, ValueError,
        "gates: expected [N, 4h, H, W] or [4h, H, W]; got shape [5, 6]"),
    "not four gates": (call_row, {"gates": (2, 13, 5, 6)}, ValueError,
        "gates: expected 4h channels, four gates of h; got shape [2, 13, 5, 6]"),
    "no channels": (call_row, {"gates": (2, 0, 5, 6)}, ValueError,
        "gates: expected 4h channels, four gates of h; got shape [2, 0, 5, 6]"),
    "the diagonal's weight": (call_row, {"weight": WEIGHT}, ValueError,
        "weight: expected [taps, 4h, h] = [3, 12, 3]; got shape [2, 12, 3]"),
    "the row's weight": (call_diagonal, {"weight": ROW_WEIGHT}, ValueError,
        "weight: expected [taps, 4h, h] = [2, 12, 3]; got shape [3, 12, 3]"),
    "a Conv1d's weight": (call_row, {"weight": (12, 3, 3)}, ValueError,
        "weight: expected [taps, 4h, h] = [3, 12, 3]; got shape [12, 3, 3]"),
    "weight of another h": (call_row, {"weight": (3, 16, 4)}, ValueError,
        "weight: expected [taps, 4h, h] = [3, 12, 3]; got shape [3, 16, 4]"),
    "h0 of another h": (call_row, {"h0": (4,)}, ValueError, "h0: expected shape [3]; got [4]"),
    "c0 with a batch": (call_row, {"c0": (2, 3)}, ValueError, "c0: expected shape [3]; got [2, 3]"),
    "no taps": (call_row, {"taps": ()}, ValueError, "taps: expected one or more whole numbers, each once; got []"),
    "a tap twice": (call_row, {"taps": (0, 0)}, ValueError,
        "taps: expected one or more whole numbers, each once; got [0, 0]"),
    "taps None": (call_row, {"taps": None}, ValueError, "taps: expected whole numbers; got None"),
    "a tap below": (call_diagonal, {"taps": (0, 1)}, ValueError,
        "taps: a diagonal front reads rows at most 0, those below hold future pixels; got [0, 1]"),
    "two shapes": (call_both, {"gates_right": (2, 12, 6, 5)}, ValueError,
        "gates_right: expected the shape of gates_left, [2, 12, 5, 6]; got [2, 12, 6, 5]"),
    "a weight of the right": (call_both, {"weight_right": ROW_WEIGHT}, ValueError,
        "weight_right: expected [taps, 4h, h] = [2, 12, 3]; got shape [3, 12, 3]"),
    "a state of the right": (call_both, {"h0_right": (2,)}, ValueError, "h0_right: expected shape [3]; got [2]"),
    "integer gates": (call_row, {"gates": torch.zeros(GATES, dtype=torch.int64)}, TypeError,
        "gates: expected a floating-point dtype; got torch.int64"),
    "half gates": (call_row, {"gates": half}, TypeError,
        "weight: expected the dtype of gates, torch.float16; got torch.float32"),
    "double state": (call_row, {"c0": torch.zeros(3).double()}, TypeError,
        "c0: expected the dtype of gates, torch.float32; got torch.float64"),
    "half gates of the right": (call_both, {"gates_right": half}, TypeError,
        "gates_right: expected the dtype of gates_left, torch.float32; got torch.float16"),
    "gates None": (call_row, {"gates": None}, TypeError, "gates: expected a Tensor; got NoneType"),
    "weight is a list": (call_row, {"weight": [1.0]}, TypeError, "weight: expected a Tensor; got list"),
    "h0 is a number": (call_row, {"h0": 0.0}, TypeError, "h0: expected a Tensor; got float"),
    "weight elsewhere": (call_row, {"weight": torch.empty(ROW_WEIGHT, device="meta")}, ValueError,
        "weight: expected the device of gates, cpu; got meta"),
    "the right elsewhere": (call_both, {"gates_right": torch.empty(GATES, device="meta")}, ValueError,
        "gates_right: expected the device of gates_left, cpu; got meta"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_refused_with_name_expectation_and_value(name):
    call, changes, error, message = BAD[name]
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call(**changes)
