"""Tensors that the wavefront LSTM keeps for backward, and the gradients it computes."""

import itertools

import pytest
import torch
from helpers.grids import DTYPES, nan_in_fresh_memory, short
from helpers.memory import kept_bytes
from helpers.wavefront_directions import ROW, SWEEPS, bilstm_inputs, inputs_for, with_gradients

from genkernels import backends
from genkernels.ops import diagonal_bilstm
from genkernels.ops.wavefront_lstm import cpu

ALL_DTYPES = (torch.float64, *DTYPES)


# --- memory ---


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_checkpoint_keeps_the_inputs_alone(dtype):
    units, pixels = 16, 2 * 9 * 8
    inputs = [t.requires_grad_() for t in inputs_for((9, 8), ROW, units=units, dtype=dtype)]
    own = sum(t.untyped_storage().nbytes() for t in inputs)
    wide = 8 if dtype == torch.float64 else 4
    assert kept_bytes(lambda: ROW(*inputs, checkpoint=True)) == own
    assert kept_bytes(lambda: ROW(*inputs)) == own + pixels * units * 5 * wide


@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=short)
def test_checkpoint_changes_neither_the_result_nor_the_gradients(sweep, dtype):
    inputs, grad = inputs_for((5, 6), sweep, units=7, dtype=dtype), torch.randn(2, 7, 5, 6).to(dtype)
    kept, again = (with_gradients(lambda *a, c=c: sweep(*a, checkpoint=c), inputs, grad) for c in (False, True))
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
    monkeypatch.setattr(cpu, "forward", lambda inputs, keep: asked.append(keep) or forward(inputs, keep))
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
