"""Convolution and sweep in one operator: results and gradients over a grid, rounds of images, memory, layouts."""

import dataclasses
import functools

import pytest
import torch
from helpers.grids import (
    DENSE,
    DTYPES,
    LAYOUTS,
    assert_within_bound,
    laid_out,
    name_of,
    nan_in_fresh_memory,
    needs_native,
    pairwise,
    short,
)
from helpers.implementations import refuse
from helpers.memory import kept_bytes
from helpers.wavefront_directions import with_gradients
from helpers.wavefront_layers import BOTH_B, DIAGONAL_B, KINDS, ROW_B, LayerKind, layer_inputs
from torch import Tensor

from genkernels import backends
from genkernels.ops import masked_conv2d, row_lstm, row_lstm_layer
from genkernels.ops.masked_conv import reference as conv_reference
from genkernels.ops.wavefront_lstm import cpu, cpu_layer
from genkernels.ops.wavefront_lstm import reference as lstm_reference
from genkernels.ops.wavefront_lstm.geometry import Geometry
from genkernels.ops.wavefront_lstm.schema import Direction, Inputs

ALL_DTYPES = [torch.float64, *DTYPES]


@pytest.fixture
def small_rounds(monkeypatch):
    """As few images at a time as the threads can share."""
    monkeypatch.setattr(cpu_layer, "_ROWS", 1)
    monkeypatch.setattr(cpu_layer, "_FLOATS", 1)


# --- result and gradients ---


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: everything that selects a path."""

    dtype: torch.dtype
    kind: LayerKind
    batch: int
    size: tuple[int, int]
    channels: int
    units: int
    bias: bool
    states: bool
    checkpoint: bool
    x_layout: str
    grad_layout: str
    threads: int

    __str__ = name_of

    def inputs(self) -> list[Tensor | None]:
        """In float64, with values that the dtype can hold."""
        x, *others = layer_inputs(self.kind, self.size, batch=self.batch, channels=self.channels, units=self.units)
        rounded: list[Tensor | None] = [t.to(self.dtype).double() for t in (x, *others)]
        sweeps = self.kind.sweeps
        for index in range(1 + sweeps, 1 + 2 * sweeps):
            rounded[index] = rounded[index] if self.bias else None
        for index in range(1 + 3 * sweeps, 1 + 5 * sweeps):
            rounded[index] = rounded[index] if self.states else None
        return rounded


AXES = {
    "dtype": DTYPES,
    "kind": KINDS,
    "batch": (0, 1, 3, 7),
    "size": ((1, 1), (1, 9), (11, 1), (5, 5), (3, 8), (9, 4)),
    "channels": (1, 3, 16),
    "units": (1, 3, 8, 17, 33),
    "bias": (True, False),
    "states": (True, False),
    "checkpoint": (False, True),
    "x_layout": LAYOUTS,
    "grad_layout": LAYOUTS,
    "threads": (1, 2, 3),
}


@pytest.mark.parametrize("case", [Case(**row) for row in pairwise(AXES)], ids=str)
def test_result_and_gradients_are_within_the_bound(case, threads, small_rounds):
    inputs = case.inputs()
    grad = torch.randn(case.batch, case.units, *case.size, generator=torch.Generator().manual_seed(9))
    grad = grad.to(case.dtype)

    def run(function, dtype):
        x, *others = (None if t is None else t.to(dtype) for t in inputs)
        return with_gradients(
            function, [laid_out(x, case.x_layout), *others], laid_out(grad.to(dtype), case.grad_layout)
        )

    threads(case.threads)
    with nan_in_fresh_memory():
        got = run(lambda *a: case.kind(*a, checkpoint=case.checkpoint), case.dtype)
    given = [laid_out(inputs[0], case.x_layout), *inputs[1:], laid_out(grad, case.grad_layout)]
    names = [f"result {index}" for index in range(len(got))]
    assert_within_bound(names, got, lambda *t: with_gradients(case.kind.plain, t[:-1], t[-1]), given)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_in_float64_it_is_the_recurrence_to_the_last_digits(kind, checkpoint):
    inputs, grad = layer_inputs(kind), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    got = with_gradients(lambda *a: kind(*a, checkpoint=checkpoint), inputs, grad)
    for ours, theirs in zip(got, with_gradients(kind.plain, inputs, grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_it_is_the_convolution_and_the_sweep_one_after_the_other():
    x, weight, bias, *state = (t.contiguous() for t in layer_inputs(ROW_B, (9, 8), dtype=torch.float32))
    expected = row_lstm(masked_conv2d(x, weight, bias, mask_type="B"), *state)
    torch.testing.assert_close(row_lstm_layer(x, weight, bias, *state), expected)


@pytest.mark.parametrize("kind", [ROW_B, BOTH_B], ids=str)
def test_an_image_without_a_batch_dimension_is_a_batch_of_one(kind):
    x, *others = layer_inputs(kind, batch=1, dtype=torch.float32)
    assert kind(x[0], *others).equal(kind(x, *others)[0])


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
@pytest.mark.parametrize("shape", [(0, 4, 5, 4), (2, 4, 0, 4), (2, 4, 5, 0)])
def test_an_empty_image_gives_an_empty_result_and_zero_gradients(shape, dtype):
    for kind in (ROW_B, BOTH_B):
        _, *others = layer_inputs(kind, dtype=dtype)
        grad = torch.empty(shape[0], 3, *shape[2:], dtype=dtype)
        with nan_in_fresh_memory():
            y, grad_x, *grads = with_gradients(kind, [torch.empty(shape, dtype=dtype), *others], grad)
        assert (y.shape, grad_x.shape) == (grad.shape, shape)
        assert not any(g.any() for g in grads)


# --- rounds of images ---


@pytest.mark.parametrize("kind", [ROW_B, DIAGONAL_B, BOTH_B], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_rounds_of_few_images_change_nothing_but_rounding(kind, dtype, checkpoint, threads, monkeypatch):
    inputs = layer_inputs(kind, (6, 7), batch=5, units=9, dtype=dtype)
    grad = torch.randn(5, 9, 6, 7).to(dtype)
    threads(2)
    at_once = with_gradients(lambda *a: kind(*a, checkpoint=checkpoint), inputs, grad)
    monkeypatch.setattr(cpu_layer, "_ROWS", 1)
    monkeypatch.setattr(cpu_layer, "_FLOATS", 1)
    first, again = (with_gradients(lambda *a: kind(*a, checkpoint=checkpoint), inputs, grad) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    for one, other in zip(first, at_once, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("count", "sweeps", "expected"),
    [(1, 1, [16, 16]), (2, 1, [16, 16]), (3, 1, [18, 14]), (4, 2, [12, 12, 8]), (16, 1, [32]), (64, 1, [32])],
)
def test_a_round_is_large_enough_and_the_same_for_every_thread(count, sweeps, expected, threads):
    kind = BOTH_B if sweeps == 2 else DIAGONAL_B
    x, input_weight, *others = layer_inputs(kind, (28, 28), batch=32, channels=1, units=64, dtype=torch.float32)
    direction = Direction(None, input_weight, None, others[2 * sweeps - 1], None, None)
    threads(count)
    geometries = [Geometry("diagonal", (0, -1), mirrored) for mirrored in (False, True)[:sweeps]]
    layer = cpu_layer._Layer(Inputs(x, "B", [direction] * sweeps, geometries))
    rounds = [slice(0, 32) if images is None else images for images in layer.rounds()]
    assert [images.stop - images.start for images in rounds] == expected


# --- memory ---


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
@pytest.mark.parametrize("kind", [ROW_B, BOTH_B], ids=str)
def test_backward_is_left_the_inputs_and_what_the_sweeps_keep_but_no_gates(kind, dtype):
    units, pixels = 16, 2 * 9 * 8
    inputs = [t.requires_grad_() for t in layer_inputs(kind, (9, 8), units=units, dtype=dtype)]
    own = sum(t.untyped_storage().nbytes() for t in inputs)
    wide = 8 if dtype == torch.float64 else 4
    assert kept_bytes(lambda: kind(*inputs, checkpoint=True)) == own
    assert kept_bytes(lambda: kind(*inputs)) == own + kind.sweeps * pixels * units * 5 * wide


@needs_native
@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_gradient_of_the_gates_of_few_images_exists_at_a_time(monkeypatch, small_rounds, threads, checkpoint):
    threads(1)
    sizes = []
    backward_into = cpu.backward_into

    def noting(grads, *others):
        sizes.append(grads[0].gates.shape[0])
        backward_into(grads, *others)

    monkeypatch.setattr(cpu, "backward_into", noting)
    inputs = [t.requires_grad_() for t in layer_inputs(ROW_B, batch=6, dtype=torch.float32)]
    ROW_B(*inputs, checkpoint=checkpoint).sum().backward()
    assert sizes == [1] * 6


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_weights_of_any_strides_give_the_same(dtype, checkpoint):
    def innermost_first(t):  # as a Conv1d of the state has its taps
        return t.permute(*range(1, t.dim()), 0).contiguous().permute(-1, *range(t.dim() - 1))

    def cut(t):  # taps at uneven distances
        return torch.cat([t, t], -1)[..., : t.shape[-1]]

    for kind in (ROW_B, BOTH_B):
        x, *others = layer_inputs(kind, channels=9, units=8, dtype=dtype)
        grad = torch.randn(2, 8, 4, 5).to(dtype)
        layer = functools.partial(kind, checkpoint=checkpoint)
        expected = with_gradients(layer, [x, *others], grad)
        for change in (innermost_first, cut):
            strided = [x, *(change(t) for t in others)]
            got = with_gradients(layer, strided, grad)
            for ours, plain in zip(got, expected, strict=True):
                torch.testing.assert_close(ours, plain, rtol=0, atol=0)


# --- which gradients are asked for ---


@pytest.mark.parametrize("kind", [ROW_B, BOTH_B], ids=str)
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=short)
def test_each_gradient_is_the_same_whichever_others_are_asked_for(kind, dtype, checkpoint, small_rounds):
    values, grad = layer_inputs(kind, dtype=dtype), torch.randn(2, 3, 4, 5).to(dtype)
    everything = with_gradients(kind, values, grad)[1:]
    count = len(values)
    for chosen in (*({k} for k in range(count)), {0, count - 1}, {1, 2}, set(range(1, count))):
        inputs = [t.detach().requires_grad_(k in chosen) for k, t in enumerate(values)]
        with nan_in_fresh_memory():
            kind(*inputs, checkpoint=checkpoint).backward(grad)
        for k, (leaf, expected) in enumerate(zip(inputs, everything, strict=True)):
            if k in chosen:
                torch.testing.assert_close(leaf.grad, expected)
            else:
                assert leaf.grad is None


# --- layouts, and which implementation runs ---


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("kind", [ROW_B, BOTH_B], ids=str)
def test_an_image_keeps_its_layout(kind, layout, dtype):
    x, *others = layer_inputs(kind, dtype=dtype)
    x = laid_out(x, layout).requires_grad_()
    y = kind(x, *others)
    y.square().sum().backward()
    last = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert y.is_contiguous(memory_format=last)
    assert x.grad.is_contiguous(memory_format=last)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_the_native_kernels_run_where_they_can(monkeypatch, dtype):
    for module in (conv_reference, lstm_reference):
        for name in ("forward", "backward"):
            monkeypatch.setattr(module, name, refuse)
    for kind in KINDS:
        with_gradients(kind, layer_inputs(kind, dtype=dtype), torch.ones(2, 3, 4, 5, dtype=dtype))


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_without_the_native_extension_the_two_operators_run(monkeypatch, dtype):
    monkeypatch.setattr(backends, "native", lambda: None)
    monkeypatch.setattr(backends, "require_native", refuse)
    for kind in (ROW_B, BOTH_B):
        inputs, grad = layer_inputs(kind, dtype=dtype), torch.randn(2, 3, 4, 5).to(dtype)
        got = with_gradients(kind, inputs, grad)
        expected = with_gradients(kind.plain, [t.double() for t in inputs], grad.double())
        close = {"rtol": 0.05, "atol": 0.05} if dtype.itemsize == 2 else {}  # gates rounded in between
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs.to(dtype), **close)
