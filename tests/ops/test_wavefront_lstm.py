"""The wavefront LSTM's result: the recurrence it promises, and where a value goes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.grids import DTYPES, LAYOUTS, laid_out, nan_in_fresh_memory, short
from helpers.wavefront_directions import (
    DIAGONAL,
    MIRRORED,
    OTHER_TAPS,
    SIZES,
    SWEEPS,
    bilstm_inputs,
    inputs_for,
    numpy_sweep,
    plain_bilstm,
    plain_sweep,
    with_gradients,
)
from torch import Tensor

from genkernels.ops import diagonal_bilstm, diagonal_lstm

ALL_DTYPES = (torch.float64, *DTYPES)


@pytest.mark.parametrize("sweep", [*SWEEPS, *OTHER_TAPS], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_pixel_is_the_lstm_of_the_pixels_that_its_taps_name(sweep, size, dtype):
    inputs = inputs_for(size, sweep)
    expected = numpy_sweep(*(t.numpy() for t in inputs), sweep)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    got = sweep(*(t.to(dtype) for t in inputs))
    np.testing.assert_allclose(got.double().numpy(), expected, **close)


@pytest.mark.parametrize("sweep", [*SWEEPS, *OTHER_TAPS], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_its_gradients_are_those_of_the_same_recurrence_in_plain_pytorch(sweep, size, dtype):
    inputs = inputs_for(size, sweep)
    grad_output = torch.randn(2, 3, *size, dtype=torch.float64)
    got = with_gradients(sweep, [t.to(dtype) for t in inputs], grad_output.to(dtype))
    expected = with_gradients(lambda *a: plain_sweep(*a, sweep), inputs, grad_output)
    close = {"rtol": 1e-11, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, **close)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_two_directions_are_added_the_second_one_row_lower(size, dtype):
    inputs = bilstm_inputs(size)
    grad_output = torch.randn(2, 3, *size, dtype=torch.float64)
    got = with_gradients(diagonal_bilstm, [t.to(dtype) for t in inputs], grad_output.to(dtype))
    expected = with_gradients(plain_bilstm, inputs, grad_output)
    close = {"rtol": 1e-11, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, **close)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_two_sweeps_in_one_call_are_the_two_sweeps(dtype):
    left, right, weight_left, weight_right, *states = bilstm_inputs((5, 7), units=5, dtype=dtype)
    first = diagonal_lstm(left, weight_left, *states[:2])
    second = diagonal_lstm(right, weight_right, *states[2:], mirrored=True)
    expected = first + F.pad(second[:, :, :-1], (0, 0, 1, 0))
    assert diagonal_bilstm(left, right, weight_left, weight_right, *states).equal(expected)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_a_mirrored_sweep_is_the_sweep_over_the_mirrored_image(dtype):
    inputs = inputs_for((4, 7), MIRRORED, dtype=dtype)
    assert MIRRORED(*inputs).equal(DIAGONAL(inputs[0].flip(3), *inputs[1:]).flip(3))


@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_initial_state_is_one_of_zeros(sweep, dtype):
    gates, weight, h0, c0 = inputs_for((3, 4), sweep, dtype=dtype)
    zero = torch.zeros_like(h0)
    for given, meant in (((None, None), (zero, zero)), ((h0, None), (h0, zero)), ((None, c0), (zero, c0))):
        assert sweep(gates, weight, *given).equal(sweep(gates, weight, *meant))


@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_an_image_without_a_batch_dimension_is_a_batch_of_one(sweep, dtype):
    gates, *others = inputs_for((3, 4), sweep, batch=1, dtype=dtype)
    assert sweep(gates[0], *others).equal(sweep(gates, *others)[0])


def test_two_images_without_a_batch_dimension():
    left, right, *others = bilstm_inputs((3, 4), batch=1)
    assert diagonal_bilstm(left[0], right[0], *others).equal(diagonal_bilstm(left, right, *others)[0])


@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(0, 8, 5, 4), (2, 8, 0, 4), (2, 8, 5, 0)])
def test_an_empty_image_gives_an_empty_result_and_zero_gradients(shape, sweep, dtype):
    inputs = inputs_for(shape[2:], sweep, batch=shape[0], units=2, dtype=dtype)
    with nan_in_fresh_memory():
        y, grad_gates, *others = with_gradients(sweep, inputs, torch.empty(shape[0], 2, *shape[2:], dtype=dtype))
    assert y.shape == (shape[0], 2, *shape[2:])
    assert grad_gates.shape == shape
    assert not any(grad.any() for grad in others)


@pytest.mark.parametrize("shape", [(0, 8, 5, 4), (2, 8, 0, 4), (2, 8, 5, 0)])
def test_an_empty_image_in_both_directions(shape):
    inputs = bilstm_inputs(shape[2:], batch=shape[0], units=2, dtype=torch.float32)
    y, *grads = with_gradients(diagonal_bilstm, inputs, torch.empty(shape[0], 2, *shape[2:]))
    assert y.shape == (shape[0], 2, *shape[2:])
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_gates_that_are_wide_open_or_shut_give_finite_results_and_gradients(sweep, dtype):
    gates, *others = inputs_for((4, 5), sweep, dtype=dtype)
    for value in with_gradients(sweep, [gates * 1e4, *others], torch.ones(2, 3, 4, 5, dtype=dtype)):
        assert value.isfinite().all()


# --- where a value goes ---


def who_sees(sweep, height: int, width: int, spot: tuple[int, int]) -> Tensor:
    """The pixels from which a chain of taps leads to the spot, itself included."""
    seen = torch.zeros(height, width, dtype=torch.bool)
    for y, x in sweep.order(height, width):
        reads = [(y + dy, x + dx) for dy, dx in (*sweep.offsets, sweep.cell)]
        seen[y, x] = (y, x) == spot or any(0 <= p < height and 0 <= q < width and seen[p, q] for p, q in reads)
    return seen


@pytest.mark.parametrize("sweep", [*SWEEPS, *OTHER_TAPS[:2]], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS[:6])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_a_nan_reaches_the_pixels_that_see_it_and_no_others(sweep, layout, dtype):
    gates, *others = inputs_for((5, 6), sweep, units=9, dtype=dtype)
    gates[1, :, 2, 3] = torch.nan
    y = sweep(laid_out(gates, layout), *others)
    assert y[0].isfinite().all()
    sees = who_sees(sweep, 5, 6, (2, 3))
    assert y[1].isnan().all(0).equal(sees)
    assert y[1].isnan().any(0).equal(sees)


@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_a_nan_gradient_reaches_the_pixels_that_its_own_sees_and_no_others(sweep, dtype):
    inputs = inputs_for((5, 6), sweep, units=9, dtype=dtype)
    grad = torch.randn(2, 9, 5, 6).to(dtype)
    grad[1, :, 3, 2] = torch.nan
    grad_gates = with_gradients(sweep, inputs, grad)[1]
    seen = torch.stack([who_sees(sweep, 5, 6, divmod(k, 6))[3, 2] for k in range(30)]).view(5, 6)
    assert grad_gates[0].isfinite().all()
    assert grad_gates[1].isnan().all(0).equal(seen)
    assert grad_gates[1].isnan().any(0).equal(seen)
