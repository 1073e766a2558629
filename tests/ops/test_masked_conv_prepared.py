"""Prepared calls of the masked convolution: the bits of a checked call, and kept for calls of its kind alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from genkernels.ops import masked_conv2d
from genkernels.ops.masked_conv import derivatives

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def call(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, upstream: Tensor) -> list[Tensor]:
    """The result and the gradients of those that want one."""
    y = masked_conv2d(x, weight, bias, mask_type="B", activation=activation)
    wanted = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    return [y.detach(), *(torch.autograd.grad(y, wanted, upstream) if wanted else ())]


@pytest.fixture
def kept(monkeypatch):
    calls: dict = {}
    monkeypatch.setattr(derivatives.forward, "kept", calls)
    return calls


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3)), ids=str)
@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, repeat=3)), ids="-".join)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_it_gives_the_bits_and_layouts_of_the_checked_call(kept, needs, layouts, activation):
    torch.manual_seed(0)
    x_layout, weight_layout, grad_layout = (LAYOUTS[layout] for layout in layouts)
    x = torch.randn(2, 3, 6, 7).to(memory_format=x_layout)
    weight = torch.randn(5, 3, 3, 5).to(memory_format=weight_layout)
    bias = torch.randn(5)
    upstream = torch.randn(2, 5, 6, 7).to(memory_format=grad_layout)
    for tensor, need in zip((x, weight, bias), needs, strict=True):
        tensor.requires_grad_(need)
    checked = call(x, weight, bias, activation, upstream)
    assert len(kept) == 1
    prepared = call(x, weight, bias, activation, upstream)
    assert len(kept) == 1
    for a, b in zip(checked, prepared, strict=True):
        assert a.equal(b)
        assert a.stride() == b.stride()


def test_an_expanded_gradient_is_taken_too(kept):
    x, weight = torch.randn(1, 2, 4, 5, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    upstream = torch.ones(()).expand(1, 3, 4, 5)
    checked, prepared = (call(x, weight, None, None, upstream) for _ in range(2))
    assert len(kept) == 1
    assert all(a.equal(b) for a, b in zip(checked, prepared, strict=True))


def test_other_layouts_options_and_sizes_are_calls_of_their_own(kept):
    x, weight = torch.randn(2, 3, 6, 7), torch.randn(5, 3, 3, 3)
    last = x.to(memory_format=torch.channels_last)
    for image, kernel, mask_type in ((x, weight, "A"), (last, weight, "A"), (x, weight, "B"), (x[:1], weight, "A")):
        first = masked_conv2d(image, kernel, mask_type=mask_type)
        assert masked_conv2d(image, kernel, mask_type=mask_type).equal(first)
    assert len(kept) == 4


def test_views_with_gaps_are_checked_each_time(kept):
    x, weight = torch.randn(2, 3, 6, 14)[..., ::2], torch.randn(5, 3, 3, 3)
    assert masked_conv2d(x, weight, mask_type="B").equal(masked_conv2d(x.contiguous(), weight, mask_type="B"))
    assert len(kept) == 1, "the contiguous copy alone is kept"


def test_its_second_derivative_is_that_of_a_checked_call(kept):
    x, weight = torch.randn(1, 2, 4, 5, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)

    def second() -> list[Tensor]:
        y = masked_conv2d(x, weight, mask_type="B").square().sum()
        (of_x,) = torch.autograd.grad(y, x, create_graph=True)
        return list(torch.autograd.grad(of_x.square().sum(), (x, weight)))

    checked, prepared = second(), second()
    assert all(a.equal(b) for a, b in zip(checked, prepared, strict=True))
    assert all(a.any() for a in prepared)
