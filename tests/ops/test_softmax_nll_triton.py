"""The Triton kernels of softmax_nll against float64: forward, every gradient, and sums with theirs."""

import pytest
import torch
from helpers.grids import DTYPES, assert_within_bound, name_of, nan_in_fresh_memory, pairwise, with_gradients
from helpers.triton_device import DEVICE, triton_tests

from genkernels.ops import softmax_nll
from ops.test_softmax_nll import plain, tensors

pytestmark = triton_tests

AXES = {
    "dtype": DTYPES,
    "batch": (1, 3),
    "size": ((1, 1), (3, 7), (9, 14)),
    "features": (1, 7, 33, 70),
    "levels": (2, 17, 64, 100),
    "colours": (1, 3),
    "bias": (True, False),
    "groups": (True, False),
    "layout": ("contiguous", "channels_last"),
    "reduction": ("none", "sum"),
}


@pytest.mark.parametrize("case", pairwise(AXES), ids=name_of)
def test_result_and_gradients_are_within_the_bound(case):
    inputs, target, grad, groups = tensors(case)
    inputs = [None if t is None else t.to(DEVICE) for t in inputs]
    target, grad = target.to(DEVICE), grad.to(DEVICE)
    reduction = case["reduction"]
    if reduction == "sum":
        grad = grad.flatten()[0]

    def theirs(x, w, b=None):
        y = plain(x, w, b, target, groups)
        return y.sum() if reduction == "sum" else y

    with nan_in_fresh_memory():
        got = with_gradients(
            lambda x, w, b=None: softmax_nll(x, w, b, target, channel_groups=groups, reduction=reduction), inputs, grad
        )
    names = ("nll", "x", "weight", "bias")[: len(got)]
    assert_within_bound(names, got, lambda *t: with_gradients(theirs, t[:3], t[3]), [*inputs, grad])


def test_a_level_without_probability_and_numbers_that_are_not_finite_are_as_in_pytorch():
    x, weight = torch.ones(1, 1, 1, 4, device=DEVICE), torch.zeros(70, 1, 1, 1, device=DEVICE)
    bias = torch.zeros(70, device=DEVICE)
    bias[:66] = -float("inf")  # the whole first tile of levels
    target = torch.tensor([[[[66, 67, 68, 69]]]], device=DEVICE)
    torch.testing.assert_close(softmax_nll(x, weight, bias, target), plain(x, weight, bias, target))
    x[0, 0, 0, 1] = float("nan")
    torch.testing.assert_close(softmax_nll(x, weight, bias, target), plain(x, weight, bias, target), equal_nan=True)
