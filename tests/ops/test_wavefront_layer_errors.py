"""Bad arguments of the recurrent layers are refused in words: which argument, what was expected, what came."""

import re

import pytest
import torch
from helpers.wavefront_layers import BOTH_B, ROW_B, layer_inputs
from torch import Tensor

from genkernels.ops import diagonal_bilstm_layer, row_lstm_layer


def call_row(**changes) -> Tensor:
    names = ("x", "input_weight", "input_bias", "weight", "h0", "c0")
    given = dict(zip(names, layer_inputs(ROW_B, dtype=torch.float32), strict=True)) | changes
    return row_lstm_layer(**given)


def call_both(**changes) -> Tensor:
    kinds = ("input_weight", "input_bias", "weight")
    names = ["x", *(f"{kind}_{side}" for kind in kinds for side in ("left", "right"))]
    given = dict(zip(names, layer_inputs(BOTH_B, dtype=torch.float32), strict=False)) | changes
    return diagonal_bilstm_layer(**given)


BAD = {
    "channels of x": (call_row, {"x": torch.zeros(2, 5, 4, 5)}, ValueError,
        "x: expected 4 channels, as input_weight has; got shape [2, 5, 4, 5]"),
    "three dimensions of a weight": (call_row, {"input_weight": torch.zeros(12, 4, 3)}, ValueError,
        "input_weight: expected [out_channels, in_channels, kh, kw]; got shape [12, 4, 3]"),
    "not four gates": (call_row, {"input_weight": torch.zeros(13, 4, 1, 3), "input_bias": None}, ValueError,
        "input_weight: expected [4h, C, kh, kw], four gates of h; got shape [13, 4, 1, 3]"),
    "an even kernel": (call_row, {"input_weight": torch.zeros(12, 4, 1, 2)}, ValueError,
        "input_weight: expected an odd kernel, so that there is a centre tap; got 1x2"),
    "a bias of h": (call_row, {"input_bias": torch.zeros(3)}, ValueError,
        "input_bias: expected shape [12]; got [3]"),
    "the diagonal's weight": (call_row, {"weight": torch.zeros(2, 12, 3)}, ValueError,
        "weight: expected [taps, 4h, h] = [3, 12, 3]; got shape [2, 12, 3]"),
    "no weight": (call_row, {"weight": None}, TypeError, "weight: expected a Tensor; got NoneType"),
    "a state of another h": (call_row, {"h0": torch.zeros(4)}, ValueError, "h0: expected shape [3]; got [4]"),
    "a half state": (call_row, {"c0": torch.zeros(3).half()}, TypeError,
        "c0: expected the dtype of x, torch.float32; got torch.float16"),
    "a state elsewhere": (call_row, {"c0": torch.zeros(3, device="meta")}, ValueError,
        "c0: expected the device of x, cpu; got meta"),
    "a mask type": (call_row, {"mask_type": "C"}, ValueError, "mask_type: expected 'A' or 'B'; got 'C'"),
    "a tap below": (call_both, {"taps": (0, 1)}, ValueError,
        "taps: a diagonal front reads rows at most 0, those below hold future pixels; got [0, 1]"),
    "two kernels": (call_both, {"input_weight_right": torch.zeros(12, 4, 1, 1)}, ValueError,
        "input_weight_right: expected the shape of input_weight_left, [12, 4, 3, 3]; got [12, 4, 1, 1]"),
    "a bias of the right": (call_both, {"input_bias_right": torch.zeros(3)}, ValueError,
        "input_bias_right: expected shape [12]; got [3]"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_refused_with_name_expectation_and_value(name):
    call, changes, error, message = BAD[name]
    assert call().shape == (2, 3, 4, 5)
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call(**changes)
