"""First and higher derivatives of the wavefront LSTM, backward and forward, eager and in torch.func."""

import itertools

import pytest
import torch
from helpers.derivatives import (
    assert_no_graph_where_none_is_wanted,
    assert_same,
    assert_transform_agrees,
    forward_mode,
    of_penalty,
    scalar,
    third,
)
from helpers.grids import needs_native
from helpers.wavefront_directions import (
    DIAGONAL,
    OTHER_TAPS,
    ROW,
    SWEEPS,
    bilstm_inputs,
    inputs_for,
    plain_bilstm,
    plain_sweep,
)
from torch import func

from genkernels.ops import diagonal_bilstm

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (2, 3)


def small(sweep=ROW, dtype=torch.float64, seed=0):
    return inputs_for(SIZE, sweep, units=2, dtype=dtype, seed=seed)


def both(dtype=torch.float64):
    return bilstm_inputs(SIZE, units=2, dtype=dtype)


def plain(sweep):
    return lambda gates, weight, h0=None, c0=None: plain_sweep(gates, weight, h0, c0, sweep)


# --- numerically ---


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("sweep", [*SWEEPS, OTHER_TAPS[1], OTHER_TAPS[5]], ids=str)
def test_gradcheck_backward_forward_and_batched(sweep, checkpoint):
    assert torch.autograd.gradcheck(
        lambda *a: sweep(*a, checkpoint=checkpoint),
        [t.requires_grad_() for t in small(sweep)],
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        fast_mode=True,
    )


def test_gradcheck_of_every_single_derivative():
    assert torch.autograd.gradcheck(ROW, [t.requires_grad_() for t in small()])


def test_gradcheck_of_both_directions():
    inputs = [t.requires_grad_() for t in both()]
    assert torch.autograd.gradcheck(diagonal_bilstm, inputs, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
def test_gradgradcheck_backward_over_backward_and_forward_over_backward(sweep):
    inputs = [t.requires_grad_() for t in small(sweep)]
    assert torch.autograd.gradgradcheck(sweep, inputs, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


def test_gradgradcheck_of_every_single_derivative():
    assert torch.autograd.gradgradcheck(DIAGONAL, [t.requires_grad_() for t in inputs_for((2, 2), units=1)])


def test_gradgradcheck_of_both_directions():
    inputs = [t.requires_grad_() for t in both()]
    assert torch.autograd.gradgradcheck(diagonal_bilstm, inputs, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("needs", [n for n in itertools.product((True, False), repeat=4) if any(n)])
def test_gradcheck_and_gradgradcheck_when_only_some_inputs_need_gradients(needs):
    inputs = [t.requires_grad_(need) for t, need in zip(small(), needs, strict=True)]
    assert torch.autograd.gradcheck(ROW, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(ROW, inputs, fast_mode=True)


def test_gradcheck_and_gradgradcheck_without_initial_states():
    inputs = [t.requires_grad_() for t in small()[:2]]
    assert torch.autograd.gradcheck(ROW, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(ROW, inputs, check_fwd_over_rev=True, fast_mode=True)


# --- against PyTorch's own operators ---


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=needs_native)])
@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
@pytest.mark.parametrize("used", [(True,) * 4, (True, False, False, False), (False, True, False, True)])
def test_double_backward_through_any_of_the_gradients_is_that_of_pytorch(used, sweep, dtype):
    """As a gradient penalty does; the float32 kernels are held against float64."""
    exact = of_penalty(plain(sweep), small(sweep), used)
    for got, expected in zip(of_penalty(sweep, small(sweep, dtype), used), exact, strict=True):
        assert got.dtype == dtype
        size = float(expected.abs().max()) or 1.0
        assert_same(got.double() / size, expected / size, dtype)


def test_a_gradient_penalty_reaches_the_weight():
    gates, weight, *_ = (t.requires_grad_() for t in small(dtype=torch.float32))
    (grad_gates,) = torch.autograd.grad(ROW(gates, weight).pow(2).sum(), gates, create_graph=True)
    grad_gates.norm().sub(1).square().backward()
    assert weight.grad.abs().sum() > 0


def test_the_third_derivative_is_that_of_pytorch():
    for got, expected in zip(third(ROW, small()), third(plain(ROW), small()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_weights_that_depend_on_the_gates_get_both_derivatives():
    """The second derivative is taken at the inputs, not through what they were computed from."""

    def second(function):
        gates, weight, h0, c0 = small()
        gates.requires_grad_()
        value = scalar(function)(gates, weight * gates.mean(), h0 + gates.sum(), c0)
        (first,) = torch.autograd.grad(value, gates, create_graph=True)
        return torch.autograd.grad(first.square().sum(), gates)[0]

    torch.testing.assert_close(second(ROW), second(plain(ROW)), rtol=1e-9, atol=1e-9)


# --- torch.func: every transform gives what it gives for PyTorch's own operators ---

ALL = (0, 1, 2, 3)
TRANSFORMS = {
    "grad": lambda f: func.grad(scalar(f), ALL),
    "grad_and_value": lambda f: func.grad_and_value(scalar(f), ALL),
    "grad of grad": lambda f: func.grad(lambda *a: sum(g.pow(2).sum() for g in func.grad(scalar(f), ALL)(*a)), ALL),
    "vjp": lambda f: lambda *a: func.vjp(f, *a)[1](torch.ones(2, 2, *SIZE, dtype=a[0].dtype)),
    "jvp": lambda f: lambda *a: func.jvp(f, a, tuple(t.cos() for t in a)),
    "jvp of the weight alone": lambda f: lambda x, w, h, c: func.jvp(lambda w: f(x, w, h, c), (w,), (w.cos(),)),
    "jvp of c0 alone": lambda f: lambda x, w, h, c: func.jvp(lambda c: f(x, w, h, c), (c,), (c.cos(),)),
    "jvp of grad": lambda f: lambda *a: func.jvp(func.grad(scalar(f), ALL), a, tuple(t.cos() for t in a)),
    "grad of jvp": lambda f: func.grad(lambda *a: func.jvp(f, a, tuple(t.cos() for t in a))[1].pow(2).sum(), ALL),
    "linearize": lambda f: lambda *a: func.linearize(f, *a)[1](*(t.cos() for t in a)),
    "jacrev": lambda f: func.jacrev(f, (1, 2)),
    "jacfwd": lambda f: func.jacfwd(f, (2, 3)),
    "hessian": lambda f: func.hessian(scalar(f), (2, 3)),
    "jacrev of jacrev": lambda f: func.jacrev(func.jacrev(scalar(f), 2), 3),
    "vmap over gates": lambda f: (
        lambda x, w, h, c: func.vmap(f, (0, None, None, None))(torch.stack([x, x.cos()]), w, h, c)
    ),
    "vmap over single images": lambda f: lambda x, w, h, c: func.vmap(f, (0, None, None, None))(x, w, h, c),
    "vmap over all": lambda f: (
        lambda *a: func.vmap(f, (0, 1, 0, 1))(
            *(torch.stack([t, t.cos()], dim) for t, dim in zip(a, (0, 1, 0, 1), strict=True))
        )
    ),
    "vmap of grad (per-sample gradients)": lambda f: (
        lambda *a: func.vmap(func.grad(scalar(f), ALL), (0, None, None, None))(*a)
    ),
    "grad of vmap": lambda f: func.grad(
        lambda x, w, h, c: func.vmap(f, (0, None, None, None))(torch.stack([x, x.cos()]), w, h, c).pow(3).sum(), ALL
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_give_what_they_give_for_pytorch(name, dtype):
    for sweep in (ROW, DIAGONAL):
        assert_transform_agrees(TRANSFORMS[name], (sweep, plain(sweep)), small(sweep, dtype))


def test_transforms_of_both_directions():
    everything = tuple(range(8))
    for transform in (
        lambda f: func.grad(scalar(f), everything),
        lambda f: lambda *a: func.jvp(f, a, tuple(t.cos() for t in a)),
        lambda f: lambda *a: func.vmap(func.grad(scalar(f), everything), (0, 0, *[None] * 6))(*a),
    ):
        for got, expected in zip(transform(diagonal_bilstm)(*both()), transform(plain_bilstm)(*both()), strict=True):
            assert_same(got, expected)


@pytest.mark.parametrize("which", [w for w in itertools.product((True, False), repeat=4) if any(w)])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_mode_by_hand_is_that_of_pytorch(which, requires_grad):
    primals = [t.requires_grad_(requires_grad) for t in small()]
    results = (forward_mode(function, primals, small(seed=1), which) for function in (ROW, plain(ROW)))
    for got, expected in zip(*results, strict=True):
        assert_same(got, expected)


def test_inference_mode_and_no_grad_give_the_same_result_without_a_graph():
    assert_no_graph_where_none_is_wanted(ROW, [t.requires_grad_() for t in small(dtype=torch.float32)])
