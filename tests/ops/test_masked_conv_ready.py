"""The short way of a masked convolution that has come before: the same bits as the long one, and taken only then."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from genkernels.ops import masked_conv2d
from genkernels.ops.masked_conv import functional as op

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def call(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, upstream: Tensor) -> list[Tensor]:
    """The result and the gradients of those that want one."""
    y = masked_conv2d(x, weight, bias, mask_type="B", activation=activation)
    wanted = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    return [y.detach(), *(torch.autograd.grad(y, wanted, upstream) if wanted else ())]


@pytest.fixture
def ready(monkeypatch):
    calls: dict = {}
    monkeypatch.setattr(op, "_ready", calls)
    return calls


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3)), ids=str)
@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, repeat=3)), ids="-".join)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_it_gives_the_bits_and_layouts_of_the_long_way(ready, needs, layouts, activation):
    torch.manual_seed(0)
    x_layout, weight_layout, grad_layout = (LAYOUTS[layout] for layout in layouts)
    x = torch.randn(2, 3, 6, 7).to(memory_format=x_layout)
    weight = torch.randn(5, 3, 3, 5).to(memory_format=weight_layout)
    bias = torch.randn(5)
    upstream = torch.randn(2, 5, 6, 7).to(memory_format=grad_layout)
    for tensor, need in zip((x, weight, bias), needs, strict=True):
        tensor.requires_grad_(need)
    long = call(x, weight, bias, activation, upstream)
    assert len(ready) == 1
    short = call(x, weight, bias, activation, upstream)
    assert len(ready) == 1
    for a, b in zip(long, short, strict=True):
        assert a.equal(b)
        assert a.stride() == b.stride()


def test_an_expanded_gradient_is_taken_too(ready):
    x, weight = torch.randn(1, 2, 4, 5, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    upstream = torch.ones(()).expand(1, 3, 4, 5)
    long, short = (call(x, weight, None, None, upstream) for _ in range(2))
    assert len(ready) == 1
    assert all(a.equal(b) for a, b in zip(long, short, strict=True))


def test_other_layouts_options_and_sizes_are_calls_of_their_own(ready):
    x, weight = torch.randn(2, 3, 6, 7), torch.randn(5, 3, 3, 3)
    last = x.to(memory_format=torch.channels_last)
    for image, kernel, mask_type in ((x, weight, "A"), (last, weight, "A"), (x, weight, "B"), (x[:1], weight, "A")):
        first = masked_conv2d(image, kernel, mask_type=mask_type)
        assert masked_conv2d(image, kernel, mask_type=mask_type).equal(first)
    assert len(ready) == 4


def test_views_with_gaps_take_the_long_way(ready):
    x, weight = torch.randn(2, 3, 6, 14)[..., ::2], torch.randn(5, 3, 3, 3)
    assert masked_conv2d(x, weight, mask_type="B").equal(masked_conv2d(x.contiguous(), weight, mask_type="B"))
    assert len(ready) == 1, "the contiguous copy alone is kept"


def test_its_second_derivative_is_the_long_way_s(ready):
    x, weight = torch.randn(1, 2, 4, 5, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)

    def second() -> list[Tensor]:
        y = masked_conv2d(x, weight, mask_type="B").square().sum()
        (of_x,) = torch.autograd.grad(y, x, create_graph=True)
        return list(torch.autograd.grad(of_x.square().sum(), (x, weight)))

    long, short = second(), second()
    assert all(a.equal(b) for a, b in zip(long, short, strict=True))
    assert all(a.any() for a in short)
