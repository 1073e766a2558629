"""What the wavefront LSTM computes: the recurrence it promises, its memory, threads, and fallbacks."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from grids import DENSE, DTYPES, LAYOUTS, laid_out, nan_in_fresh_memory, needs_native, short
from torch import Tensor

from genkernels import backends
from genkernels.ops import diagonal_bilstm, diagonal_lstm
from genkernels.ops.wavefront_lstm import cpu, reference
from genkernels.ops.wavefront_lstm.geometry import Geometry

from .wavefront_walks import (
    DIAGONAL,
    MIRRORED,
    OTHER_TAPS,
    ROW,
    SIZES,
    WALKS,
    bilstm_inputs,
    inputs_for,
    numpy_walk,
    plain_bilstm,
    plain_walk,
    with_gradients,
)

ALL_DTYPES = (torch.float64, *DTYPES)


@pytest.fixture
def threads():
    """Sets the number of threads, and sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# --- the recurrence itself ---


@pytest.mark.parametrize("walk", [*WALKS, *OTHER_TAPS], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_pixel_is_the_lstm_of_the_pixels_that_its_taps_name(walk, size, dtype):
    inputs = inputs_for(size, walk)
    expected = numpy_walk(*(t.numpy() for t in inputs), walk)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    got = walk(*(t.to(dtype) for t in inputs))
    np.testing.assert_allclose(got.double().numpy(), expected, **close)


@pytest.mark.parametrize("walk", [*WALKS, *OTHER_TAPS], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_its_gradients_are_those_of_the_same_recurrence_in_plain_pytorch(walk, size, dtype):
    inputs = inputs_for(size, walk)
    grad_output = torch.randn(2, 3, *size, dtype=torch.float64)
    got = with_gradients(walk, [t.to(dtype) for t in inputs], grad_output.to(dtype))
    expected = with_gradients(lambda *a: plain_walk(*a, walk), inputs, grad_output)
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
def test_two_walks_in_one_call_are_the_two_walks(dtype):
    left, right, weight_left, weight_right, *states = bilstm_inputs((5, 7), units=5, dtype=dtype)
    first = diagonal_lstm(left, weight_left, *states[:2])
    second = diagonal_lstm(right, weight_right, *states[2:], mirrored=True)
    expected = first + F.pad(second[:, :, :-1], (0, 0, 1, 0))
    assert diagonal_bilstm(left, right, weight_left, weight_right, *states).equal(expected)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_a_mirrored_walk_is_the_walk_over_the_mirrored_image(dtype):
    inputs = inputs_for((4, 7), MIRRORED, dtype=dtype)
    assert MIRRORED(*inputs).equal(DIAGONAL(inputs[0].flip(3), *inputs[1:]).flip(3))


@pytest.mark.parametrize("walk", WALKS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_initial_state_is_one_of_zeros(walk, dtype):
    gates, weight, h0, c0 = inputs_for((3, 4), walk, dtype=dtype)
    zero = torch.zeros_like(h0)
    for given, meant in (((None, None), (zero, zero)), ((h0, None), (h0, zero)), ((None, c0), (zero, c0))):
        assert walk(gates, weight, *given).equal(walk(gates, weight, *meant))


@pytest.mark.parametrize("walk", WALKS, ids=str)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_an_image_without_a_batch_dimension_is_a_batch_of_one(walk, dtype):
    gates, *others = inputs_for((3, 4), walk, batch=1, dtype=dtype)
    assert walk(gates[0], *others).equal(walk(gates, *others)[0])


def test_two_images_without_a_batch_dimension():
    left, right, *others = bilstm_inputs((3, 4), batch=1)
    assert diagonal_bilstm(left[0], right[0], *others).equal(diagonal_bilstm(left, right, *others)[0])


@pytest.mark.parametrize("walk", WALKS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(0, 8, 5, 4), (2, 8, 0, 4), (2, 8, 5, 0)])
def test_an_empty_image_gives_an_empty_result_and_zero_gradients(shape, walk, dtype):
    inputs = inputs_for(shape[2:], walk, batch=shape[0], units=2, dtype=dtype)
    with nan_in_fresh_memory():
        y, grad_gates, *others = with_gradients(walk, inputs, torch.empty(shape[0], 2, *shape[2:], dtype=dtype))
    assert y.shape == (shape[0], 2, *shape[2:])
    assert grad_gates.shape == shape
    assert not any(grad.any() for grad in others)


@pytest.mark.parametrize("shape", [(0, 8, 5, 4), (2, 8, 0, 4), (2, 8, 5, 0)])
def test_an_empty_image_in_both_directions(shape):
    inputs = bilstm_inputs(shape[2:], batch=shape[0], units=2, dtype=torch.float32)
    y, *grads = with_gradients(diagonal_bilstm, inputs, torch.empty(shape[0], 2, *shape[2:]))
    assert y.shape == (shape[0], 2, *shape[2:])
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("walk", WALKS, ids=str)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_gates_that_are_wide_open_or_shut_give_finite_results_and_gradients(walk, dtype):
    gates, *others = inputs_for((4, 5), walk, dtype=dtype)
    for value in with_gradients(walk, [gates * 1e4, *others], torch.ones(2, 3, 4, 5, dtype=dtype)):
        assert value.isfinite().all()


# --- where a value goes ---


def who_sees(walk, height: int, width: int, spot: tuple[int, int]) -> Tensor:
    """The pixels from which a chain of taps leads to the spot, itself included."""
    seen = torch.zeros(height, width, dtype=torch.bool)
    for y, x in walk.order(height, width):
        reads = [(y + dy, x + dx) for dy, dx in (*walk.offsets, walk.cell)]
        seen[y, x] = (y, x) == spot or any(0 <= p < height and 0 <= q < width and seen[p, q] for p, q in reads)
    return seen


@pytest.mark.parametrize("walk", [*WALKS, *OTHER_TAPS[:2]], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS[:6])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_a_nan_reaches_the_pixels_that_see_it_and_no_others(walk, layout, dtype):
    gates, *others = inputs_for((5, 6), walk, units=9, dtype=dtype)
    gates[1, :, 2, 3] = torch.nan
    y = walk(laid_out(gates, layout), *others)
    assert y[0].isfinite().all()
    sees = who_sees(walk, 5, 6, (2, 3))
    assert y[1].isnan().all(0).equal(sees)
    assert y[1].isnan().any(0).equal(sees)


@pytest.mark.parametrize("walk", WALKS, ids=str)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_a_nan_gradient_reaches_the_pixels_that_its_own_sees_and_no_others(walk, dtype):
    inputs = inputs_for((5, 6), walk, units=9, dtype=dtype)
    grad = torch.randn(2, 9, 5, 6).to(dtype)
    grad[1, :, 3, 2] = torch.nan
    grad_gates = with_gradients(walk, inputs, grad)[1]
    seen = torch.stack([who_sees(walk, 5, 6, divmod(k, 6))[3, 2] for k in range(30)]).view(5, 6)
    assert grad_gates[0].isfinite().all()
    assert grad_gates[1].isnan().all(0).equal(seen)
    assert grad_gates[1].isnan().any(0).equal(seen)


# --- memory ---


def kept_bytes(function) -> int:
    """Bytes that the graph of function() holds for its backward, each storage once."""
    storages = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function()
    del y
    return sum(storages.values())


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_checkpoint_keeps_the_inputs_alone(dtype):
    units, pixels = 16, 2 * 9 * 8
    inputs = [t.requires_grad_() for t in inputs_for((9, 8), ROW, units=units, dtype=dtype)]
    own = sum(t.untyped_storage().nbytes() for t in inputs)
    wide = 8 if dtype == torch.float64 else 4
    assert kept_bytes(lambda: ROW(*inputs, checkpoint=True)) == own
    assert kept_bytes(lambda: ROW(*inputs)) == own + pixels * units * 5 * wide


@pytest.mark.parametrize("walk", WALKS, ids=str)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_checkpoint_changes_neither_the_result_nor_the_gradients(walk, dtype):
    inputs, grad = inputs_for((5, 6), walk, units=7, dtype=dtype), torch.randn(2, 7, 5, 6).to(dtype)
    kept, again = (with_gradients(lambda *a, c=c: walk(*a, checkpoint=c), inputs, grad) for c in (False, True))
    for one, other in zip(kept, again, strict=True):
        torch.testing.assert_close(one, other)


def test_checkpoint_in_both_directions():
    inputs, grad = bilstm_inputs((5, 6), dtype=torch.float32), torch.randn(2, 3, 5, 6)
    kept, again = (
        with_gradients(lambda *a, c=c: diagonal_bilstm(*a, checkpoint=c), inputs, grad) for c in (False, True)
    )
    for one, other in zip(kept, again, strict=True):
        torch.testing.assert_close(one, other)


def test_nothing_is_kept_where_no_gradient_can_be_asked_for(monkeypatch):
    asked = []
    forward = backends.native() and cpu.forward
    monkeypatch.setattr(
        cpu, "forward", lambda walks, geometries, keep: asked.append(keep) or forward(walks, geometries, keep)
    )
    if forward is None:
        pytest.skip("tests what the native kernel is asked for")
    inputs = inputs_for((3, 4), ROW, dtype=torch.float32)
    ROW(*inputs)
    with torch.no_grad():
        ROW(inputs[0].requires_grad_(), *inputs[1:])
    ROW(*inputs)
    assert asked == [False, False, True]


def test_changing_what_backward_needs_is_refused():
    for which in range(2):
        inputs = [t.requires_grad_() for t in inputs_for((3, 4), ROW, dtype=torch.float32)]
        y = ROW(*inputs)
        with torch.no_grad():
            inputs[which].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


# --- which gradients are asked for ---


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("needs", [n for n in itertools.product((True, False), repeat=4) if any(n)])
def test_each_gradient_is_the_same_whichever_others_are_asked_for(needs, dtype, checkpoint):
    values, grad = inputs_for((4, 5), ROW, dtype=dtype), torch.randn(2, 3, 4, 5, dtype=dtype)
    everything = with_gradients(ROW, values, grad)[1:]
    inputs = [t.requires_grad_(need) for t, need in zip(values, needs, strict=True)]
    with nan_in_fresh_memory():
        ROW(*inputs, checkpoint=checkpoint).backward(grad)
    for leaf, expected, need in zip(inputs, everything, needs, strict=True):
        if need:
            torch.testing.assert_close(leaf.grad, expected)
        else:
            assert leaf.grad is None


def test_one_direction_alone_may_be_asked_for():
    inputs, grad = bilstm_inputs((4, 5), dtype=torch.float32), torch.randn(2, 3, 4, 5)
    everything = with_gradients(diagonal_bilstm, inputs, grad)[1:]
    for chosen in ((0,), (3,), (1, 3, 6), (2, 4)):
        leaves = [t.detach().requires_grad_(k in chosen) for k, t in enumerate(inputs)]
        with nan_in_fresh_memory():
            diagonal_bilstm(*leaves).backward(grad)
        for k, leaf in enumerate(leaves):
            if k in chosen:
                torch.testing.assert_close(leaf.grad, everything[k])
            else:
                assert leaf.grad is None


# --- threads ---


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("layout", DENSE)
def test_the_same_number_of_threads_gives_the_same_bits(threads, layout, dtype, batch):
    gates, *others = inputs_for((17, 14), DIAGONAL, batch=batch, units=24, dtype=dtype)
    inputs, grad = [laid_out(gates, layout), *others], torch.randn(batch, 24, 17, 14).to(dtype)
    for count in (1, 2, 3):
        threads(count)
        first, *rest = (with_gradients(DIAGONAL, inputs, grad) for _ in range(4))
        for again in rest:
            assert all(a.equal(b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("walk", WALKS, ids=str)
@pytest.mark.parametrize("batch", [1, 4, 5])
def test_any_number_of_threads_gives_the_same_result_but_for_rounding(threads, batch, walk):
    inputs, grad = (
        inputs_for((16, 13), walk, batch=batch, units=24, dtype=torch.float32),
        torch.randn(batch, 24, 16, 13),
    )
    threads(1)
    one = with_gradients(walk, inputs, grad)
    for count in (2, 3, 7):
        threads(count)
        for ours, theirs in zip(with_gradients(walk, inputs, grad), one, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


def test_calls_from_several_python_threads_do_not_disturb_each_other(threads):
    threads(2)
    jobs = [
        (walk, inputs_for((11, 12), walk, units=20, dtype=torch.float32), torch.randn(2, 20, 11, 12))
        for walk in (*WALKS, OTHER_TAPS[2])
    ]
    alone = [with_gradients(*job) for job in jobs]

    def often(job):
        torch.set_num_threads(2)  # per thread in some builds of torch
        return [with_gradients(*job) for _ in range(5)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        for expected, rounds in zip(alone, pool.map(often, jobs), strict=True):
            for got in rounds:
                assert all(a.equal(b) for a, b in zip(got, expected, strict=True))


# --- which implementation runs ---


def refuse(*_args, **_options):
    raise AssertionError("the wrong implementation was called")


@needs_native
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_the_native_kernels_run_where_they_can(monkeypatch, dtype, checkpoint):
    monkeypatch.setattr(reference, "forward", refuse)
    monkeypatch.setattr(reference, "backward", refuse)
    for walk in WALKS:
        inputs = inputs_for((3, 4), walk, dtype=dtype)
        with_gradients(lambda *a, w=walk: w(*a, checkpoint=checkpoint), inputs, torch.ones(2, 3, 3, 4, dtype=dtype))
    with_gradients(diagonal_bilstm, bilstm_inputs((3, 4), dtype=dtype), torch.ones(2, 3, 3, 4, dtype=dtype))


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_without_the_native_extension_the_reference_runs(monkeypatch, dtype):
    monkeypatch.setattr(backends, "native", lambda: None)
    monkeypatch.setattr(backends, "require_native", refuse)
    monkeypatch.setattr(cpu, "forward", refuse)
    monkeypatch.setattr(cpu, "backward", refuse)
    inputs, grad = inputs_for((4, 3), ROW, dtype=dtype), torch.randn(2, 3, 4, 3).to(dtype)
    got = with_gradients(ROW, inputs, grad)
    wide = [t.double() for t in inputs]
    expected = with_gradients(lambda *a: plain_walk(*a, ROW), wide, grad.double())
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs.to(dtype))


# --- the geometry ---


@pytest.mark.parametrize("walk", [*WALKS, *OTHER_TAPS], ids=str)
def test_the_geometry_names_the_offsets_and_reads_only_the_front_before(walk):
    geometry = Geometry(walk.front, walk.taps, walk.mirrored)
    assert tuple(geometry.offsets()) == walk.offsets
    assert geometry.cell_offset() == walk.cell
    height, width = 5, 7
    for y, x in walk.order(height, width):
        for dy, dx in (*walk.offsets, walk.cell):
            assert geometry.step(y + dy, x + dx, width) == geometry.step(y, x, width) - 1


@pytest.mark.parametrize("size", [*SIZES, (7, 3), (0, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("walk", WALKS, ids=str)
def test_the_fronts_hold_every_pixel_once(walk, size):
    geometry = Geometry(walk.front, walk.taps, walk.mirrored)
    fronts = [geometry.cells(step, *size) for step in range(geometry.steps(*size))]
    assert all(fronts)
    assert sorted(itertools.chain(*fronts)) == list(itertools.product(*map(range, size)))
    for step, cells in enumerate(fronts):
        assert all(geometry.step(*cell, size[1]) == step for cell in cells)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("column", (0,)), "front: expected 'row' or 'diagonal'; got 'column'"),
        (("row", ()), "taps: expected one or more whole numbers, each once; got []"),
        (("row", (0, 0)), "taps: expected one or more whole numbers, each once; got [0, 0]"),
        (("row", (0.5,)), "taps: expected one or more whole numbers, each once; got [0.5]"),
        (
            ("diagonal", (0, 1)),
            "taps: a diagonal front reads rows at most 0, those below hold future pixels; got [0, 1]",
        ),
        (("row", (0,), True), "mirrored: only a diagonal front has a mirror image; got front 'row'"),
    ],
)
def test_a_geometry_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError) as caught:
        Geometry(*arguments)
    assert str(caught.value) == message
