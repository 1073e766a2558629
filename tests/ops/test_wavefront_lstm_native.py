"""Native runs of the wavefront LSTM: on any number of threads, and which implementation when."""

from functools import partial

import pytest
import torch
from helpers.grids import DENSE, DTYPES, laid_out, needs_native, short
from helpers.implementations import check_undisturbed, refuse
from helpers.wavefront_directions import (
    DIAGONAL,
    OTHER_TAPS,
    ROW,
    SWEEPS,
    bilstm_inputs,
    inputs_for,
    plain_sweep,
    with_gradients,
)

from genkernels import backends
from genkernels.ops import diagonal_bilstm
from genkernels.ops.wavefront_lstm import cpu, reference

ALL_DTYPES = (torch.float64, *DTYPES)


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


@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
@pytest.mark.parametrize("batch", [1, 4, 5])
def test_any_number_of_threads_gives_the_same_result_but_for_rounding(threads, batch, sweep):
    inputs, grad = (
        inputs_for((16, 13), sweep, batch=batch, units=24, dtype=torch.float32),
        torch.randn(batch, 24, 16, 13),
    )
    threads(1)
    one = with_gradients(sweep, inputs, grad)
    for count in (2, 3, 7):
        threads(count)
        for ours, theirs in zip(with_gradients(sweep, inputs, grad), one, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


def test_calls_from_several_python_threads_do_not_disturb_each_other(threads):
    threads(2)
    grad = torch.randn(2, 20, 11, 12)
    jobs = [
        partial(with_gradients, sweep, inputs_for((11, 12), sweep, units=20, dtype=torch.float32), grad)
        for sweep in (*SWEEPS, OTHER_TAPS[2])
    ]
    check_undisturbed(jobs, rounds=5)


# --- which implementation runs ---


@needs_native
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_the_native_kernels_run_where_they_can(monkeypatch, dtype, checkpoint):
    monkeypatch.setattr(reference, "forward", refuse)
    monkeypatch.setattr(reference, "backward", refuse)
    for sweep in SWEEPS:
        inputs = inputs_for((3, 4), sweep, dtype=dtype)
        with_gradients(lambda *a, w=sweep: w(*a, checkpoint=checkpoint), inputs, torch.ones(2, 3, 3, 4, dtype=dtype))
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
    expected = with_gradients(lambda *a: plain_sweep(*a, ROW), wide, grad.double())
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs.to(dtype))
