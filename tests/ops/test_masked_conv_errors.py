"""Bad arguments of the masked convolution are refused by name, with what was expected and what came."""

import re

import numpy as np
import pytest
import torch
from helpers.fresh_process import run_fresh
from torch import Tensor

from genkernels.ops import masked_conv2d

X, WEIGHT, BIAS = (2, 4, 5, 6), (8, 4, 3, 3), (8,)


def call(x=X, weight=WEIGHT, bias=BIAS, **options) -> Tensor:
    tensors = [torch.randn(t) if isinstance(t, tuple) else t for t in (x, weight, bias)]
    return masked_conv2d(*tensors, **{"mask_type": "B"} | options)


def test_the_call_that_the_others_spoil_is_good():
    assert call().shape == (2, 8, 5, 6)


BAD_VALUES = {
    "mask_type C": ({"mask_type": "C"}, "mask_type: expected 'A' or 'B'; got 'C'"),
    "mask_type b": ({"mask_type": "b"}, "mask_type: expected 'A' or 'B'; got 'b'"),
    "mask_type None": ({"mask_type": None}, "mask_type: expected 'A' or 'B'; got None"),
    "no groups": ({"channel_groups": 0}, "channel_groups: expected a whole number of at least 1; got 0"),
    "fewer than no groups": (
        {"channel_groups": -2},
        "channel_groups: expected a whole number of at least 1; got -2",
    ),
    "half a group": (
        {"channel_groups": 1.5},
        "channel_groups: expected a whole number of at least 1; got 1.5",
    ),
    "more groups than inputs": ({"channel_groups": 5}, "channel_groups: expected at most {}= 4; got 5"),
    "group_layout": (
        {"group_layout": "rows"},
        "group_layout: expected 'blocks' or 'interleaved'; got 'rows'",
    ),
    "activation": ({"activation": "gelu"}, "activation: expected None or 'relu'; got 'gelu'"),
    "activation none": ({"activation": "none"}, "activation: expected None or 'relu'; got 'none'"),
    "dilation 0": ({"dilation": 0}, "dilation: expected {}at least 1; got 0"),
    "dilation (1, 0)": ({"dilation": (1, 0)}, "dilation: expected {}at least 1; got (1, 0)"),
    "three dilations": ({"dilation": (1, 1, 1)}, "dilation: expected one or two {}; got (1, 1, 1)"),
    "dilation 1.5": ({"dilation": (1.5, 1)}, "dilation: expected {}whole numbers{}; got (1.5, 1)"),
    "dilation 1.5 for both": ({"dilation": 1.5}, "dilation: expected {}whole numbers{}; got 1.5"),
    "dilation None": ({"dilation": None}, "dilation: expected {}whole numbers{}; got None"),
    "x of 2 dimensions": ({"x": (5, 6)}, "x: expected [N, C, H, W] or [C, H, W]; got {}[5, 6]"),
    "x of 5 dimensions": (
        {"x": (1, 2, 4, 5, 6)},
        "x: expected [N, C, H, W] or [C, H, W]; got {}[1, 2, 4, 5, 6]",
    ),
    "x of other channels": ({"x": (2, 3, 5, 6)}, "x: expected 4 channels{}; got {}[2, 3, 5, 6]"),
    "x of other channels, unbatched": ({"x": (3, 5, 6)}, "x: expected 4 channels{}; got {}[3, 5, 6]"),
    "weight of 3 dimensions": ({"weight": (8, 4, 3)}, "weight: expected [out_channels, {}]; got {}[8, 4, 3]"),
    "even kernel height": ({"weight": (8, 4, 2, 3)}, "weight: expected an odd kernel{}; got 2x3"),
    "even kernel width": ({"weight": (8, 4, 3, 4)}, "weight: expected an odd kernel{}; got 3x4"),
    "empty kernel": ({"weight": (8, 4, 0, 3)}, "weight: expected an odd kernel{}; got 0x3"),
    "bias of another length": ({"bias": (7,)}, "bias: expected shape [8]; got [7]"),
    "bias of one": ({"bias": (1,)}, "bias: expected shape [8]; got [1]"),
    "bias of 2 dimensions": ({"bias": (8, 1)}, "bias: expected shape [8]; got [8, 1]"),
}
BAD_TYPES = {
    "integer x": (
        {"x": torch.zeros(X, dtype=torch.int64)},
        "x: expected a floating-point dtype; got torch.int64",
    ),
    "bool x": ({"x": torch.zeros(X, dtype=torch.bool)}, "x: expected a floating-point dtype; got torch.bool"),
    "complex x": (
        {"x": torch.zeros(X, dtype=torch.cfloat)},
        "x: expected a floating-point dtype; got torch.complex64",
    ),
    "double weight": (
        {"weight": torch.zeros(WEIGHT, dtype=torch.float64)},
        "weight: expected the dtype of x, torch.float32; got torch.float64",
    ),
    "half bias": (
        {"bias": torch.zeros(BIAS, dtype=torch.float16)},
        "bias: expected the dtype of x, torch.float32; got torch.float16",
    ),
    "x is an array": ({"x": np.zeros(X, dtype=np.float32)}, "x: expected {}ensor; got {}ndarray{}"),
    "weight is a list": ({"weight": [[1.0]]}, "weight: expected {}ensor; got {}list{}"),
    "bias is a number": ({"bias": 1.0}, "bias: expected {}ensor{}; got {}float{}"),
}


def as_pattern(message: str) -> str:
    """{} stands for any words."""
    return "^" + re.escape(message).replace(re.escape("{}"), ".*") + "$"


@pytest.mark.parametrize("name", BAD_VALUES | BAD_TYPES)
def test_a_bad_argument_is_refused_with_name_expectation_and_value(name):
    changes, message = (BAD_VALUES | BAD_TYPES)[name]
    with pytest.raises(ValueError if name in BAD_VALUES else TypeError, match=as_pattern(message)):
        call(**changes)


@pytest.mark.parametrize("elsewhere", ["x", "weight", "bias"])
def test_tensors_on_different_devices_are_refused_by_name(elsewhere):
    """As with a model that was built on the meta device and is not filled yet."""
    printed = run_fresh(  # in its own process: a kernel that reads from such a tensor may end it
        f"""
        import torch
        from genkernels.ops import masked_conv2d
        tensors = {{"x": torch.randn{X}, "weight": torch.randn{WEIGHT}, "bias": torch.randn{BIAS}}}
        tensors[{elsewhere!r}] = tensors[{elsewhere!r}].to("meta")
        try:
            print("accepted, gives", masked_conv2d(**tensors, mask_type="B").device)
        except ValueError as error:
            print(error)
        """
    )
    name, came = {"x": ("weight", "cpu"), "weight": ("weight", "meta"), "bias": ("bias", "meta")}[elsewhere]
    assert re.search(f"^{name}: expected the device of x, .*; got {came}$", printed), printed


def test_the_mask_type_must_be_said():
    with pytest.raises(TypeError, match="mask_type"):
        masked_conv2d(torch.randn(X), torch.randn(WEIGHT))
