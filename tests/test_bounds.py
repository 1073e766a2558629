"""The bound of grids.py tells a rounding from a fault."""

import pytest
import torch
import torch.nn.functional as F
from helpers.grids import DIRECT, WINOGRAD, assert_accurate, with_rounding


def tf32(t: torch.Tensor) -> torch.Tensor:
    """Rounded to ten bits behind the point."""
    return (t.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)


@pytest.fixture
def convolution():
    """x, weight, the convolution in float64 and its unit."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 64, 16, 16, generator=generator), torch.randn(64, 64, 4, 4, generator=generator)
    (exact,), (unit,) = with_rounding(
        lambda x, w: [F.conv2d(x, w, stride=2)], [x.double(), weight.double()], torch.finfo(torch.float32).eps
    )
    return x, weight, exact, unit


def test_plain_float32_is_within_the_bound_of_direct_sums(convolution):
    x, weight, exact, unit = convolution
    patches = F.unfold(x, 4, stride=2)
    assert_accurate("y", (weight.flatten(1) @ patches).view(exact.shape), exact, unit, DIRECT)


@pytest.mark.parametrize(
    "fault",
    {
        "a missing product": lambda x, w: (x, w * (torch.arange(w.numel()).view(w.shape) != 17)),
        "operands rounded to TF32": lambda x, w: (tf32(x), tf32(w)),
        "an operand rounded to bfloat16": lambda x, w: (x, w.bfloat16().float()),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_fault_is_beyond_the_widest_bound(convolution, fault):
    x, weight, exact, unit = convolution
    wrong = F.conv2d(*(t.double() for t in fault[1](x, weight)), stride=2).float()
    with pytest.raises(AssertionError, match="error"):
        assert_accurate("y", wrong, exact, unit, WINOGRAD)


def test_a_16_bit_result_may_be_off_by_half_a_unit_in_its_last_place_and_no_more(convolution):
    *_, exact, unit = convolution
    assert_accurate("y", exact.bfloat16(), exact, unit)
    with pytest.raises(AssertionError, match="error"):
        assert_accurate("y", (exact * (1 + torch.finfo(torch.bfloat16).eps)).bfloat16(), exact, unit)
