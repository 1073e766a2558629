"""Each native implementation of the convolution, forced on one shape, against float64, and the choice among them."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers.grids import DIRECT, WINOGRAD, assert_within_bound, needs_native, with_gradients
from torch import Tensor

from genkernels import backends
from genkernels.ops import conv2d_bn_act, conv_transpose2d_bn_act
from genkernels.ops.conv_bn_act import heuristics
from genkernels.ops.core.implementations import forced, last

pytestmark = needs_native

OURS = {True: conv_transpose2d_bn_act, False: conv2d_bn_act}
PLAIN = {True: F.conv_transpose2d, False: F.conv2d}
# transposed, channels of x and of the result: an image made and read, blocks of F(2x2, 2x2) and of F(4x4, 2x2)
SHAPES = {"to image": (True, 24, 3), "from image": (False, 3, 24), "64": (True, 64, 72), "130": (True, 130, 64),
          "strided": (False, 64, 72)}  # fmt: skip
# implementation, of the forward and of the backward pass, and the factor of the bound
RUNS = [
    ("to image", "col2im", "col2im", "direct", DIRECT),
    ("to image", "direct", "direct", "direct", DIRECT),
    ("from image", "col2im", "direct", "col2im", DIRECT),
    ("from image", "direct", "direct", "direct", DIRECT),
    *((shape, "winograd", "winograd", "winograd", WINOGRAD) for shape in ("64", "130", "strided")),
    *((shape, "direct", "direct", "direct", DIRECT) for shape in ("64", "130", "strided")),
]


def inputs(transposed: bool, channels: int, outputs: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    pair = (channels, outputs) if transposed else (outputs, channels)
    x = torch.randn(3, channels, 9, 11, generator=generator) if transposed else torch.randn(3, channels, 18, 22)
    weight = torch.randn(*pair, 4, 4, generator=generator) * (16 * channels) ** -0.5
    return [x, weight, torch.randn(PLAIN[transposed](x, weight, stride=2, padding=1).shape, generator=generator)]


@pytest.mark.parametrize(("shape", "name", "forward", "backward", "factor"), RUNS)
def test_a_forced_implementation_runs_and_keeps_its_bound(seeded, shape, name, forward, backward, factor):
    transposed, *channels = SHAPES[shape]
    values = inputs(transposed, *channels)
    x, weight, grad = (t.detach().requires_grad_() for t in values)
    plain = partial(PLAIN[transposed], stride=2, padding=1)
    with forced(name):
        y = OURS[transposed](x, weight, stride=2, padding=1)
        assert last() == forward
        got = [y.detach(), *torch.autograd.grad(y, (x, weight), grad)]
        assert last() == backward
    names = ("y", "grad of x", "grad of weight")
    assert_within_bound(names, got, lambda *t: with_gradients(plain, t[:2], t[2]), values, factor=factor)


def test_numbers_of_very_different_size_take_the_direct_form():
    x, weight, _ = inputs(True, 64, 72)
    conv_transpose2d_bn_act(x, weight, stride=2, padding=1)
    assert last() == "winograd"
    x[0, 0, 0, 0] = 1e6
    conv_transpose2d_bn_act(x, weight, stride=2, padding=1)
    assert last() == "direct"


def implementation(transposed: bool, channels: tuple[int, int], low: int, kernel: int = 4, padding: int = 1) -> str:
    native = backends.require_native()
    shape = native.ConvShape(
        batch=2, low_channels=channels[0], high_channels=channels[1], low_size=(low, low),
        high_size=(2 * low + kernel - 2 - 2 * padding,) * 2, kernel=(kernel, kernel), stride=(2, 2),
        padding=(padding, padding),
    )  # fmt: skip
    return native.conv_implementation(shape=shape, transposed=transposed)


def test_the_layers_measured_crossovers_of_winograd_are_of_shapes_that_take_it():
    least, pixels = heuristics.WINOGRAD_CHANNELS, heuristics.WINOGRAD_IMAGE
    for transposed in (True, False):
        for low in (4, 8, 16, 32):
            assert low * low >= pixels
            assert implementation(transposed, (least, least), low) == "winograd"
            assert implementation(transposed, (least, least - 1), low) == "direct"
        assert implementation(transposed, (least, least), 3) == "direct"
        assert implementation(transposed, (least, least), 8, kernel=5) == "direct"


def test_a_name_that_no_implementation_has_or_that_does_not_suit_changes_nothing():
    x, weight, _ = inputs(True, 64, 72)
    for name in ("none", "col2im"):
        with forced(name):
            conv_transpose2d_bn_act(x, weight, stride=2, padding=1)
            assert last() == "winograd"


def test_a_shape_that_is_none_is_refused_by_name():
    with pytest.raises(ValueError, match="shape: expected sizes and strides of at least 1, got 0"):
        implementation(True, (0, 4), 4)
    with pytest.raises(ValueError, match="shape: expected padding of at least 0, got -1"):
        implementation(True, (4, 4), 4, padding=-1)
