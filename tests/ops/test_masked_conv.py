"""The masked convolution's result: the sum it promises, taps that do not exist, threads, fallbacks."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.grids import DENSE, DTYPES, LAYOUTS, laid_out, nan_in_fresh_memory, needs_native, short, with_gradients
from helpers.implementations import check_undisturbed, refuse
from torch import Tensor

from genkernels import backends
from genkernels.ops import masked_conv2d
from genkernels.ops.masked_conv import cpu, reference


def gradients(x: Tensor, weight: Tensor, bias: Tensor | None, grad_output: Tensor, **options) -> tuple[Tensor, ...]:
    """y and the gradients of those inputs that are there."""
    return with_gradients(partial(masked_conv2d, **options), (x, weight, bias), grad_output)


# --- the sum itself ---


def group_of(channel: int, channels: int, groups: int, layout: str) -> int:
    """Written down by hand, block sizes as even as can be, not with the formula of the code under test."""
    if layout == "interleaved":
        return list(itertools.islice(itertools.cycle(range(groups)), channels))[channel]
    starts = [-(-g * channels // groups) for g in range(groups)]
    return sum(channel >= start for start in starts) - 1


def naive(x, weight, bias, grad_output, *, mask_type, channel_groups=1, group_layout="blocks", dilation=(1, 1)):
    """Every output pixel asks every earlier pixel that its kernel reaches; with gradients, in float64."""
    batch, inputs, height, width = x.shape
    outputs, _, kernel_h, kernel_w = weight.shape
    y = np.zeros((batch, outputs, height, width)) + bias[:, None, None]
    grad_x, grad_weight = np.zeros_like(x), np.zeros_like(weight)
    for i, j, r, s in itertools.product(range(height), range(width), range(kernel_h), range(kernel_w)):
        p, q = i + (r - kernel_h // 2) * dilation[0], j + (s - kernel_w // 2) * dilation[1]
        if not (0 <= p < height and 0 <= q < width):
            continue
        for o, c in itertools.product(range(outputs), range(inputs)):
            seen = (p, q, group_of(c, inputs, channel_groups, group_layout))
            seer = (i, j, group_of(o, outputs, channel_groups, group_layout))
            # Tuples compare as the sub-pixels are ordered: row, column, colour.
            if seen < seer or (seen == seer and mask_type == "B"):
                y[:, o, i, j] += weight[o, c, r, s] * x[:, c, p, q]
                grad_x[:, c, p, q] += weight[o, c, r, s] * grad_output[:, o, i, j]
                grad_weight[o, c, r, s] += x[:, c, p, q] @ grad_output[:, o, i, j]
    return y, grad_x, grad_weight, grad_output.sum((0, 2, 3))


@pytest.mark.parametrize(
    ("channels", "groups", "layout"),
    [
        ((2, 3), 1, "blocks"),
        ((3, 3), 3, "blocks"),
        ((7, 5), 3, "blocks"),
        ((5, 8), 4, "interleaved"),
        ((7, 5), 3, "interleaved"),
    ],
)
@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize(
    ("kernel", "dilation"), [((3, 3), (1, 1)), ((5, 3), (1, 2)), ((1, 5), (1, 1)), ((1, 1), (1, 1))]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_sum_over_earlier_subpixels_and_so_are_its_gradients(
    channels, groups, layout, mask_type, kernel, dilation, dtype
):
    rng = np.random.default_rng(0)
    shapes = (
        (2, channels[0], 4, 5),
        (channels[1], channels[0], *kernel),
        (channels[1],),
        (2, channels[1], 4, 5),
    )
    arrays = [rng.standard_normal(shape) for shape in shapes]
    options = {"mask_type": mask_type, "channel_groups": groups, "group_layout": layout, "dilation": dilation}
    got = gradients(*(torch.tensor(a, dtype=dtype) for a in arrays), **options)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    for ours, theirs in zip(got, naive(*arrays, **options), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, **close)


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=short)
def test_an_image_without_a_batch_dimension_is_a_batch_of_one(dtype):
    x, weight = torch.randn(3, 6, 5, dtype=dtype), torch.randn(4, 3, 3, 3, dtype=dtype)
    one = masked_conv2d(x[None], weight, mask_type="B")
    assert masked_conv2d(x, weight, mask_type="B").equal(one[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (2, 3, 0, 4), (2, 3, 5, 0)])
def test_an_empty_image_gives_an_empty_result_and_zero_gradients(shape, dtype):
    x, weight, bias = (
        torch.randn(shape, dtype=dtype),
        torch.randn(4, 3, 3, 3, dtype=dtype),
        torch.randn(4, dtype=dtype),
    )
    with nan_in_fresh_memory():
        y, grad_x, grad_weight, grad_bias = gradients(
            x,
            weight,
            bias,
            torch.empty(shape[0], 4, *shape[2:], dtype=dtype),
            mask_type="A",
            activation="relu",
        )
    assert y.shape == (shape[0], 4, *shape[2:])
    assert grad_x.shape == shape
    assert not grad_weight.any()
    assert not grad_bias.any()


# --- taps that do not exist ---

GROUPS = [(1, "blocks"), (3, "blocks"), (3, "interleaved")]


def dead_taps(outputs: int, inputs: int, kernel: tuple[int, int], mask_type: str, groups: int, layout: str) -> Tensor:
    """True where the weight is masked, from the definition."""
    dead = torch.zeros(outputs, inputs, *kernel, dtype=torch.bool)
    centre = kernel[0] // 2, kernel[1] // 2
    for index in itertools.product(*map(range, dead.shape)):
        (o, c), tap = index[:2], index[2:]
        seen, seer = group_of(c, inputs, groups, layout), group_of(o, outputs, groups, layout)
        live = (*tap, seen) < (*centre, seer) or (mask_type == "B" and (*tap, seen) == (*centre, seer))
        dead[index] = not live
    return dead


@pytest.mark.parametrize(("groups", "layout"), GROUPS)
@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=short)
def test_a_masked_tap_has_a_gradient_of_exactly_zero_and_a_live_one_does_not(kernel, mask_type, groups, layout, dtype):
    x, weight = torch.randn(2, 7, 9, 8, dtype=dtype), torch.randn(11, 7, *kernel, dtype=dtype)
    grad_weight = gradients(x, weight, None, torch.ones(2, 11, 9, 8, dtype=dtype), mask_type=mask_type,
                            channel_groups=groups, group_layout=layout)[2]  # fmt: skip
    assert (grad_weight == 0).equal(dead_taps(11, 7, kernel, mask_type, groups, layout))


@needs_native  # the reference multiplies by the mask, and NaN * 0 is NaN
@pytest.mark.parametrize(("groups", "layout"), GROUPS)
@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("junk", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_what_stands_in_a_masked_weight_is_never_read(dtype, junk, mask_type, groups, layout):
    dead = dead_taps(11, 7, (3, 3), mask_type, groups, layout)
    x, weight, grad = torch.randn(2, 7, 9, 8), torch.randn(11, 7, 3, 3), torch.randn(2, 11, 9, 8)
    options = {"mask_type": mask_type, "channel_groups": groups, "group_layout": layout}
    for memory_format in DENSE:
        clean = laid_out(weight.masked_fill(dead, 0).to(dtype), memory_format)
        expected = gradients(x.to(dtype), clean, None, grad.to(dtype), **options)
        got = gradients(x.to(dtype), clean.masked_fill(dead, junk), None, grad.to(dtype), **options)
        for ours, theirs in zip(got, expected, strict=True):
            assert ours.equal(theirs)


@needs_native  # PyTorch's convolution multiplies the future by a zero weight, and NaN * 0 is NaN
@pytest.mark.parametrize("layout", LAYOUTS[:6])
@pytest.mark.parametrize("channels", [(9, 10), (34, 33)])
@pytest.mark.parametrize("junk", [torch.nan, torch.inf])
@pytest.mark.parametrize(("mask_type", "activation"), [("A", None), ("B", None), ("B", "relu")])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_a_nan_reaches_the_pixels_that_see_it_and_no_others(dtype, mask_type, activation, junk, channels, layout):
    height, width, spot = 9, 11, (5, 4)
    x, weight = torch.randn(2, channels[0], height, width, dtype=dtype), torch.rand(*channels[::-1], 3, 5).to(dtype)
    sees = torch.zeros(height, width, dtype=torch.bool)
    for row, column in itertools.product(range(3), range(5)):
        if (row, column) < (1, 2) or (mask_type == "B" and (row, column) == (1, 2)):
            sees[spot[0] - (row - 1), spot[1] - (column - 2)] = True

    x[1, :, spot[0], spot[1]] = junk
    y = masked_conv2d(laid_out(x, layout), weight, mask_type=mask_type, activation=activation)
    assert y[0].isfinite().all()
    assert (~y[1].isfinite()).all(0).equal(sees)
    assert (~y[1].isfinite()).any(0).equal(sees)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_a_nan_gradient_reaches_the_pixels_that_it_came_from_and_no_others(dtype):
    x, weight, grad = torch.randn(2, 9, 8, 11), torch.randn(10, 9, 3, 5).abs(), torch.randn(2, 10, 8, 11)
    grad[1, :, 5, 4] = torch.nan
    seen = torch.zeros(8, 11, dtype=torch.bool)
    seen[4, 2:7] = seen[5, 2:5] = True
    grad_x = gradients(x.to(dtype), weight.to(dtype), None, grad.to(dtype), mask_type="B")[1]
    assert grad_x[0].isfinite().all()
    assert grad_x[1].isnan().all(0).equal(seen)
    assert grad_x[1].isnan().any(0).equal(seen)


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=short)
def test_relu_keeps_nan_as_pytorch_does(dtype):
    x = torch.full((1, 1, 1, 20), torch.nan, dtype=dtype)
    y = masked_conv2d(x, torch.ones(1, 1, 1, 3, dtype=dtype), mask_type="B", activation="relu")
    assert y.isnan().all()


# --- which gradients are asked for ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("needs", [n for n in itertools.product((True, False), repeat=3) if any(n)])
def test_each_gradient_is_the_same_whichever_others_are_asked_for(needs, dtype):
    values = [torch.randn(shape, dtype=dtype) for shape in ((3, 8, 12, 9), (10, 8, 3, 3), (10,))]
    grad = torch.randn(3, 10, 12, 9, dtype=dtype)
    options = {"mask_type": "B", "channel_groups": 2, "activation": "relu"}
    everything = gradients(*values, grad, **options)[1:]
    inputs = [t.requires_grad_(need) for t, need in zip(values, needs, strict=True)]
    with nan_in_fresh_memory():
        masked_conv2d(*inputs, **options).backward(grad)
    for leaf, expected, need in zip(inputs, everything, needs, strict=True):
        if need:
            torch.testing.assert_close(leaf.grad, expected)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("what", ["input", "relu's output"])
def test_changing_what_backward_needs_is_refused(what):
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3, requires_grad=True)
    y = masked_conv2d(x, weight, mask_type="A", activation="relu")
    with torch.no_grad():
        (x if what == "input" else y).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# --- threads ---

BIG = (
    (3, 24, 21, 33),
    (40, 24, 3, 3),
    (40,),
    (3, 40, 21, 33),
)  # x, weight, bias, grad_output: enough for 8 threads


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("layout", DENSE)
def test_the_same_number_of_threads_gives_the_same_bits(threads, layout, dtype):
    arguments = [torch.randn(shape).to(dtype) for shape in BIG]
    arguments[0] = laid_out(arguments[0], layout)
    for count in (1, 2, 3):
        threads(count)
        first, *others = (gradients(*arguments, mask_type="B", activation="relu") for _ in range(5))
        for other in others:
            assert all(a.equal(b) for a, b in zip(first, other, strict=True))


def test_any_number_of_threads_gives_the_same_result_but_for_rounding(threads):
    arguments = [torch.randn(shape) for shape in BIG]
    threads(1)
    one = gradients(*arguments, mask_type="B")
    for count in (2, 3, 7):
        threads(count)
        for ours, theirs in zip(gradients(*arguments, mask_type="B"), one, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_calls_from_several_python_threads_do_not_disturb_each_other(threads):
    threads(2)
    jobs = []
    for seed, (kernel, groups) in enumerate([((3, 3), 1), ((5, 5), 2), ((7, 1), 3), ((1, 7), 4)]):
        generator = torch.Generator().manual_seed(seed)
        shapes = (2, 12, 17, 19), (16, 12, *kernel), (16,), (2, 16, 17, 19)
        tensors = [torch.randn(shape, generator=generator) for shape in shapes]
        options = {"mask_type": "B", "channel_groups": groups, "group_layout": "interleaved"}
        jobs.append(partial(gradients, *tensors, **options))
    check_undisturbed(jobs, rounds=10)


# --- which implementation runs ---


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_the_native_kernels_run_where_they_can(monkeypatch, dtype):
    monkeypatch.setattr(reference, "forward", refuse)
    monkeypatch.setattr(reference, "backward", refuse)
    values = [torch.randn(shape).to(dtype) for shape in ((1, 2, 4, 5), (3, 2, 3, 3), (3,), (1, 3, 4, 5))]
    assert gradients(*values, mask_type="A", activation="relu")[0].shape == (1, 3, 4, 5)


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=short)
def test_without_the_native_extension_the_reference_runs(monkeypatch, dtype):
    monkeypatch.setattr(backends, "native", lambda: None)
    monkeypatch.setattr(backends, "require_native", refuse)
    monkeypatch.setattr(cpu, "forward", refuse)
    monkeypatch.setattr(cpu, "backward", refuse)
    x, weight, bias, grad = (torch.randn(shape).to(dtype) for shape in ((2, 5, 4, 6), (7, 5, 3, 3), (7,), (2, 7, 4, 6)))
    live = ~dead_taps(7, 5, (3, 3), "B", 3, "interleaved")
    y, *got = gradients(
        x, weight, bias, grad, mask_type="B", channel_groups=3, group_layout="interleaved", activation="relu"
    )
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
    expected = F.conv2d(inputs[0], inputs[1] * live, inputs[2], padding=1).relu()
    torch.testing.assert_close(y, expected)
    for ours, theirs in zip(got, torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(ours, theirs)
