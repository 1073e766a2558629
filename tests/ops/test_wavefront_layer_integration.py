"""Recurrent layers among PyTorch's machinery: every derivative, opcheck, torch.compile, export, autocast."""

import pytest
import torch
from helpers.compiled import assert_compiled_equals_eager, assert_promised, gradients
from helpers.derivatives import assert_transform_agrees, of_penalty, scalar, third
from helpers.grids import DENSE, LAYOUTS, laid_out, needs_native, short
from helpers.wavefront_layers import BOTH_B, DIAGONAL_B, ROW_A, ROW_B, layer_inputs
from torch import func
from torch._subclasses.fake_tensor import FakeTensorMode

from genkernels import nn as gnn
from genkernels.ops.wavefront_lstm.schema import LAYERS

pytestmark = pytest.mark.usefixtures("one_thread", "fresh_compiler")

KINDS = (ROW_A, DIAGONAL_B, BOTH_B)
FLOATS = [torch.float64, pytest.param(torch.float32, marks=needs_native)]
# Fewer pixels than a kernel of 3x3 reaches over: every border is there.
TINY = {"size": (2, 3), "channels": 2, "units": 2}


def options(kind) -> list:
    front = "row" if kind.name == "row" else "diagonal"
    return [kind.mask_type, front, [-1, 0, 1] if front == "row" else [0, -1]]


def operator_inputs(kind, *, layout: str = "contiguous", **sizes) -> list:
    """x, then all parameters of one sweep, then those of the other."""
    x, *others = layer_inputs(kind, **sizes)
    count = kind.sweeps
    kinds = [others[index * count : (index + 1) * count] for index in range(3)]
    states = others[3 * count :]
    sweeps = [[t[k] for t in kinds] + states[2 * k : 2 * k + 2] for k in range(count)]
    return [laid_out(x, layout), *(t for sweep in sweeps for t in sweep)]


# --- derivatives ---


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradcheck_backward_forward_and_batched(kind, checkpoint):
    inputs = [t.requires_grad_() for t in layer_inputs(kind, **TINY)]
    assert torch.autograd.gradcheck(
        lambda *a: kind(*a, checkpoint=checkpoint),
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        fast_mode=True,
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradgradcheck_backward_over_backward_and_forward_over_backward(kind):
    inputs = [t.requires_grad_() for t in layer_inputs(kind, **TINY)]
    assert torch.autograd.gradgradcheck(kind, inputs, check_fwd_over_rev=kind is not BOTH_B, fast_mode=True)


@pytest.mark.parametrize("alone", range(6))
def test_gradcheck_and_gradgradcheck_when_one_input_needs_a_gradient(alone):
    inputs = [t.requires_grad_(k == alone) for k, t in enumerate(layer_inputs(ROW_B, **TINY))]
    assert torch.autograd.gradcheck(ROW_B, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(ROW_B, inputs, fast_mode=True)


def test_gradgradcheck_without_bias_and_initial_states():
    x, weight, _, state, *_ = (t.requires_grad_() for t in layer_inputs(ROW_B, **TINY))
    assert torch.autograd.gradgradcheck(
        lambda x, w, s: ROW_B(x, w, None, s), [x, weight, state], check_fwd_over_rev=True, fast_mode=True
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_gradient_penalty_has_the_gradients_of_pytorch(kind, dtype):
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    exact = of_penalty(kind.plain, layer_inputs(kind))
    for got, expected in zip(of_penalty(kind, layer_inputs(kind, dtype=dtype)), exact, strict=True):
        size = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(got.double() / size, expected / size, **close)


def test_the_third_derivative_is_that_of_pytorch():
    inputs = layer_inputs(BOTH_B, **TINY)
    for got, expected in zip(third(BOTH_B, inputs), third(BOTH_B.plain, inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


TRANSFORMS = {
    "grad": lambda f, n: func.grad(scalar(f), n),
    "jvp": lambda f, n: lambda *a: func.jvp(f, a, tuple(t.cos() for t in a)),
    "jvp of grad": lambda f, n: lambda *a: func.jvp(func.grad(scalar(f), n), a, tuple(t.cos() for t in a)),
    "grad of jvp": lambda f, n: func.grad(lambda *a: func.jvp(f, a, tuple(t.cos() for t in a))[1].pow(2).sum(), n),
    "jacrev": lambda f, n: func.jacrev(f, n[-1]),
    "jacfwd": lambda f, n: func.jacfwd(f, n[-1]),
    "hessian": lambda f, n: func.hessian(scalar(f), n[-1]),
    "per-sample gradients": lambda f, n: func.vmap(func.grad(scalar(f), n), (0, *[None] * (len(n) - 1))),
    "vmap over weights": lambda f, n: (
        lambda x, w, *a: func.vmap(f, (None, 0, *[None] * len(a)))(x, torch.stack([w, w.cos()]), *a)
    ),
}


@pytest.mark.parametrize("kind", [ROW_A, BOTH_B], ids=str)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_give_what_they_give_for_pytorch(name, kind):
    inputs = layer_inputs(kind, **TINY)
    assert_transform_agrees(lambda f: TRANSFORMS[name](f, tuple(range(len(inputs)))), (kind, kind.plain), inputs)


# --- the operators' promises ---


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep", [True, False])
def test_the_fake_kernels_promise_the_strides_that_come(keep, layout, dtype):
    for kind in (ROW_B, BOTH_B):

        def everything(inputs, kind=kind):
            hidden, saved = LAYERS[kind.sweeps].forward_op(*inputs, *options(kind), keep)
            needs = [k % 3 != 2 for k in range(len(inputs))]
            backward = LAYERS[kind.sweeps].backward_op
            return hidden, saved, *backward(torch.ones_like(hidden), *inputs, saved, *options(kind), needs)

        inputs = operator_inputs(kind, layout=layout, dtype=dtype)
        real = everything(inputs)
        with FakeTensorMode() as mode:
            fake = everything([mode.from_tensor(t) for t in inputs])
        assert_promised(real, fake)


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float64, "contiguous"), pytest.param(torch.float32, "channels_last", marks=needs_native)],
)
@pytest.mark.parametrize("keep", [True, False])
def test_opcheck_of_forward_and_backward(dtype, layout, keep):
    for kind in (ROW_B, BOTH_B):
        inputs = operator_inputs(kind, layout=layout, dtype=dtype)
        forward, backward = LAYERS[kind.sweeps].forward_op, LAYERS[kind.sweeps].backward_op
        hidden, saved = forward(*inputs, *options(kind), keep)
        for needs in ([True] * len(inputs), [k % 2 == 1 for k in range(len(inputs))]):
            torch.library.opcheck(backward, (torch.randn_like(hidden), *inputs, saved, *options(kind), needs))
        leaves = [t.requires_grad_() for t in inputs]
        torch.library.opcheck(forward, (*leaves, *options(kind), keep))
        bare = [leaves[0], leaves[1], None, leaves[3], None, None, *leaves[6:]]
        torch.library.opcheck(forward, (*bare, *options(kind), keep))


def test_opcheck_of_the_derivative_of_backward():
    """It is traced as plain PyTorch, which takes a while: one small image."""
    inputs = operator_inputs(ROW_B, size=(1, 2), batch=1, units=1, channels=1)
    hidden, saved = LAYERS[1].forward_op(*inputs, *options(ROW_B), True)
    leaves = [t.requires_grad_() for t in (torch.randn_like(hidden), *inputs)]
    torch.library.opcheck(LAYERS[1].backward_op, (*leaves, saved, *options(ROW_B), [True] * 6))


# --- torch.compile, export, autocast ---


@pytest.mark.parametrize(("dtype", "layout"), [(torch.float64, "contiguous"), (torch.bfloat16, "channels_last")])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_it_traces_in_one_graph_forward_and_backward(layout, dtype, dynamic, checkpoint):
    for kind in (ROW_B, BOTH_B):

        def function(*tensors, kind=kind):
            return kind(*tensors, checkpoint=checkpoint)

        x, *others = layer_inputs(kind, dtype=dtype)
        inputs = [laid_out(x, layout), *others]
        assert_compiled_equals_eager(function, inputs, backend="aot_eager", dynamic=dynamic)


@pytest.mark.slow
@pytest.mark.parametrize("layout", DENSE)
def test_layers_compile_with_inductor_forward_and_backward(layout):
    """With work before and after that Inductor generates code for, which relies on the promised strides."""
    for layer in (gnn.RowLSTM(4, 6, channel_groups=2), gnn.DiagonalBiLSTM(4, 6, learned_state=True)):
        x = laid_out(torch.randn(2, 4, 6, 5), layout)
        assert_compiled_equals_eager(lambda x, layer=layer: layer(x.sin() * 2).sigmoid() * 3, [x])


def test_a_compiled_layer_serves_other_batch_sizes_without_failing():
    for layer in (gnn.RowLSTM(3, 6, channel_groups=3), gnn.DiagonalBiLSTM(3, 6, learned_state=True)):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for batch in (4, 2, 1, 3):
            x = torch.randn(batch, 3, 8, 5)
            torch.testing.assert_close(compiled(x), layer(x))


def test_export_keeps_the_operator_and_its_result():
    layer, x = gnn.DiagonalBiLSTM(3, 6), torch.randn(2, 3, 8, 5)
    program = torch.export.export(layer, (x,))
    assert LAYERS[2].forward_op in [node.target for node in program.graph.nodes]
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=short)
@pytest.mark.parametrize("kind", [ROW_B, BOTH_B], ids=str)
def test_autocast_computes_in_16_bit_and_gives_float32_gradients(dtype, kind):
    def under_autocast(*tensors):
        with torch.autocast("cpu", dtype=dtype):
            return kind(*tensors)

    inputs = layer_inputs(kind, dtype=torch.float32)
    got = gradients(under_autocast, inputs)
    expected = gradients(lambda *tensors: kind(*(t.to(dtype) for t in tensors)), inputs)
    assert got[0].dtype == dtype
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.equal(other)


def test_autocast_leaves_float64_alone_and_brings_mixed_dtypes_together():
    inputs = layer_inputs(ROW_B)
    x, weight, *others = layer_inputs(ROW_B, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ROW_B(*inputs).dtype == torch.float64
        assert ROW_B(x.bfloat16(), weight.half(), *others).dtype == torch.bfloat16


def test_a_double_backward_under_autocast_works():
    x, weight, *others = (t.requires_grad_() for t in layer_inputs(ROW_B, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ROW_B(x, weight, *others)
        (grad,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
        grad.square().mean().backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.abs().sum() > 0
