"""A number reaches the results that read it and no others: outliers, NaN and infinity, as in PyTorch.

Forms that multiply differences of neighbours (Winograd's) are quicker, and would spread them.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers.fresh_process import run_fresh
from helpers.grids import needs_native, with_gradients
from torch import Tensor

from genkernels.ops import conv2d_bn_act, conv_transpose2d_bn_act, masked_conv2d

# Both tiles of the transposed form, whole and cut; the masked convolution in tiles of two pixels.
SHAPES = {
    "strided": (2, 64, 72, 16, 18),
    "transposed": (2, 64, 128, 8, 7),
    "transposed, wide": (2, 128, 64, 8, 9),
    "masked": (2, 32, 33, 9, 11),
}
EPS = torch.finfo(torch.float32).eps
PECULIAR = (float("nan"), float("inf"), -float("inf"), 1e8, -1e30)


def operation(name: str):
    """(ours, PyTorch's, shape of the weight) of a kind, as functions of x and weight."""
    _, inputs, outputs, _, _ = SHAPES[name]
    if name == "strided":
        return (
            lambda x, w: conv2d_bn_act(x, w, stride=2, padding=1),
            lambda x, w: F.conv2d(x, w, stride=2, padding=1),
            (outputs, inputs, 4, 4),
        )
    if name == "masked":
        live = torch.ones(3, 3, dtype=torch.float64)
        live.view(-1)[5:] = 0
        return (
            lambda x, w: masked_conv2d(x, w, mask_type="B"),
            # The dead taps are cut off: a masked weight would multiply a NaN by zero.
            lambda x, w: (
                F.conv2d(F.pad(x, (1, 1, 1, 0))[..., :-1, :], w[:, :, :1])
                + F.conv2d(F.pad(x, (1, 0, 0, 0)), w[:, :, 1:2, :2])
            ),
            (outputs, inputs, 3, 3),
        )
    return (
        lambda x, w: conv_transpose2d_bn_act(x, w, stride=2, padding=1),
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1),
        (inputs, outputs, 4, 4),
    )


def tensors(name: str) -> tuple[Tensor, Tensor, Tensor]:
    batch, inputs, _, height, width = SHAPES[name]
    torch.manual_seed(0)
    x, weight = torch.randn(batch, inputs, height, width), 0.1 * torch.randn(operation(name)[2])
    return x, weight, torch.randn_like(operation(name)[1](x, weight))


def readers(plain, outlier: Tensor, wide: list[Tensor], where: str) -> list[Tensor]:
    """Which of the result and the gradients of x and weight read the ones of ``outlier``, a place of x or gradient."""
    index = 0 if where == "x" else 2
    ones = [torch.ones_like(t) for t in wide]
    ones[index] = outlier
    y, grad_x, grad_weight = (t > 0 for t in with_gradients(plain, ones[:2], ones[2]))
    return [y & (where == "x"), grad_x & (where == "gradient"), grad_weight]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("value", PECULIAR)
@pytest.mark.parametrize("where", ["x", "gradient"])
@pytest.mark.parametrize("channels", ["one channel", "all channels"])
def test_what_stands_out_reaches_what_reads_it_alone(name, value, where, channels):
    ours, plain, _ = operation(name)
    wide = [t.double() for t in tensors(name)]
    index = 0 if where == "x" else 2
    without = with_gradients(plain, wide[:2], wide[2])
    for row, column in ((0, 0), (3, 4), (wide[index].shape[2] - 1, wide[index].shape[3] - 1)):
        place = (1, slice(None) if channels == "all channels" else 3, row, column)
        outlier = torch.zeros_like(wide[index])
        outlier[place] = 1
        seen = readers(plain, outlier, wide, where)
        mine = [t.float() for t in wide]
        mine[index][place] = value
        got = with_gradients(ours, mine[:2], mine[2])
        sizes = [t.abs() for t in wide]
        terms = with_gradients(plain, sizes[:2], sizes[2])
        for result, (one, before, size, touched) in enumerate(zip(got, without, terms, seen, strict=True)):
            elsewhere = ~touched
            if name == "masked" and result == 2 and not torch.tensor(value).isfinite():
                # The border's zeros are multiplied: what is not finite reaches the channel's other taps.
                elsewhere = ~touched.any(dim=(2, 3), keepdim=True).expand_as(one)
            what = f"result {result} with {value} at {place}"
            error = (one.double() - before).abs()[elsewhere]
            assert (error <= 16 * EPS * size[elsewhere].clamp(min=size.mean())).all(), (
                f"{what} changes what is elsewhere"
            )
            if not abs(value) < 1e9:
                assert not one.isfinite()[touched].any() or abs(value) < 1e38, f"{what} does not arrive"
            else:
                assert touched.sum() == 0 or (one.double() - before).abs()[touched].max() > 1e5, (
                    f"{what} does not arrive"
                )


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("value", [1e4, 1e8])
def test_a_weight_that_stands_out_reaches_what_reads_it_alone(name, value):
    ours, plain, _ = operation(name)
    wide = [t.double() for t in tensors(name)]
    sizes = [t.abs() for t in wide]
    terms = with_gradients(plain, sizes[:2], sizes[2])
    without = with_gradients(plain, wide[:2], wide[2])
    for place in ((3, 5, 0, 0), (3, 5, 1, 1)):
        one = torch.zeros_like(wide[1])
        one[place] = 1
        y, grad_x, _ = with_gradients(plain, [torch.ones_like(wide[0]), one], torch.ones_like(wide[2]))
        mine = [t.float() for t in wide]
        mine[1][place] = value
        got = with_gradients(ours, mine[:2], mine[2])
        for result, read in enumerate((y > 0, grad_x > 0)):
            error = (got[result].double() - without[result]).abs()[~read]
            allowed = 16 * EPS * terms[result][~read].clamp(min=terms[result].mean())
            assert (error <= allowed).all(), f"result {result} with {value} at {place}: {float(error.max()):.3g}"
            # It arrives where it is read.
            assert (got[result].double() - without[result]).abs()[read].max() > 0.1 * value


@pytest.mark.parametrize("name", ["strided", "transposed", "transposed, wide"])
def test_a_gradient_that_starts_at_one_pixel_is_zero_outside_the_receptive_field(name):
    ours, plain, _ = operation(name)
    x, weight, grad = tensors(name)
    for row, column in itertools.product((0, 5), (2, 6)):
        one = torch.zeros_like(grad)
        one[0, :, row, column] = 1
        (got,) = torch.autograd.grad(ours(x.requires_grad_(), weight), x, one)
        (expected,) = torch.autograd.grad(plain(x.requires_grad_(), weight), x, one)
        assert ((got != 0) == (expected != 0)).all()


@needs_native
def test_winograds_forms_can_be_switched_off():
    program = """
        import torch
        from genkernels.ops import conv2d_bn_act
        torch.manual_seed(0)
        x, w = torch.randn(2, 64, 16, 16), torch.randn(64, 64, 4, 4)
        exact = torch.nn.functional.conv2d(x.double(), w.double(), stride=2, padding=1)
        error = (conv2d_bn_act(x, w, stride=2, padding=1) - exact).square().mean().sqrt()
        print(error.item())
        """
    direct, winograd = (float(run_fresh(program, GENKERNELS_WINOGRAD=value)) for value in ("0", "1"))
    assert direct < 0.7 * winograd


@needs_native
def test_a_wrong_value_of_the_switch_is_told():
    printed = run_fresh(
        """
        from genkernels import _C
        try:
            _C.active_isa()
        except ValueError as error:
            print(error)
        """,
        GENKERNELS_WINOGRAD="off",
    )
    assert printed == "environment variable GENKERNELS_WINOGRAD: expected 0 or 1, got 'off'"
