"""The wavefront LSTM among PyTorch's machinery: layouts, opcheck, torch.compile, autocast."""

import pytest
import torch
from helpers.compiled import assert_compiled_equals_eager, assert_promised, gradients
from helpers.grids import DENSE, DTYPES, LAYOUTS, SLICED, laid_out, needs_native, short
from helpers.wavefront_directions import DIAGONAL, MIRRORED, ROW, bilstm_inputs, inputs_for
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from genkernels.ops import diagonal_bilstm, row_lstm

pytestmark = pytest.mark.usefixtures("fresh_compiler")

op = torch.ops.genkernels.wavefront_lstm.default
backward_op = torch.ops.genkernels.wavefront_lstm_backward.default
pair_op = torch.ops.genkernels.wavefront_lstm_pair.default
pair_backward_op = torch.ops.genkernels.wavefront_lstm_pair_backward.default

FLOATS = [torch.float64, pytest.param(torch.float32, marks=needs_native)]
SIZE = (4, 5)


def options(*sweeps) -> list:
    return [sweeps[0].front, list(sweeps[0].taps), [sweep.mirrored for sweep in sweeps]]


def in_layout(inputs: list[Tensor], layout: str) -> list[Tensor]:
    return [laid_out(t, layout) if t.dim() == 4 else t for t in inputs]


def pair_inputs(dtype=torch.float32, layout: str = "contiguous") -> list[Tensor]:
    """As the operator takes them: the four of one sweep, the four of the other."""
    return in_layout([t for seed in (0, 1) for t in inputs_for(SIZE, dtype=dtype, seed=seed)], layout)


# --- layouts ---


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=short)
@pytest.mark.parametrize("layout", [*DENSE, *SLICED])
@pytest.mark.parametrize("sweep", [ROW, MIRRORED], ids=str)
def test_an_image_keeps_its_layout(sweep, layout, dtype):
    inputs = in_layout(inputs_for(SIZE, sweep, dtype=dtype), layout)
    y, grad_gates, grad_weight, *_ = gradients(sweep, inputs)
    kind = torch.channels_last if layout in ("channels_last", "window_channels_last") else torch.contiguous_format
    assert y.is_contiguous(memory_format=kind)
    assert grad_gates.is_contiguous(memory_format=kind)
    assert grad_weight.is_contiguous()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_any_tensor_gives_the_same(layout):
    gates, weight, h0, c0 = inputs_for(SIZE, ROW, dtype=torch.float32)
    gates = laid_out(gates, layout)
    plain = gates.clone(memory_format=torch.contiguous_format)
    strange = weight.permute(2, 0, 1).contiguous().permute(1, 2, 0), h0.repeat(2)[:3], torch.stack([c0, h0], 1)[:, 0]
    for got, expected in zip(gradients(ROW, [gates, *strange]), gradients(ROW, [plain, weight, h0, c0]), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep", [True, False])
def test_the_fake_kernels_promise_the_strides_that_come(keep, layout, dtype):
    for forward, backward, inputs, choices in (
        (op, backward_op, in_layout(inputs_for(SIZE, ROW, dtype=dtype), layout), options(ROW)),
        (pair_op, pair_backward_op, pair_inputs(dtype, layout), options(DIAGONAL, MIRRORED)),
    ):
        count = len(inputs) // 4

        def everything(inputs, forward=forward, backward=backward, choices=choices, count=count):
            *hidden, saved = forward(*inputs, *choices, keep)
            arguments = []
            for sweep in range(count):
                arguments += [torch.ones_like(hidden[sweep]), *inputs[4 * sweep : 4 * sweep + 4]]
            return (*hidden, saved, *backward(*arguments, saved, *choices, [True, True, False, True] * count))

        real = everything(inputs)
        with FakeTensorMode() as mode:
            fake = everything([mode.from_tensor(t) for t in inputs])
        assert_promised(real, fake)


# --- opcheck ---


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_opcheck_of_the_forward_operators(dtype, layout, keep, requires_grad):
    for sweep in (ROW, MIRRORED):
        gates, weight, h0, c0 = (
            t.requires_grad_(requires_grad) for t in in_layout(inputs_for(SIZE, sweep, dtype=dtype), layout)
        )
        torch.library.opcheck(op, (gates, weight, h0, c0, *options(sweep), keep))
        torch.library.opcheck(op, (gates, weight, None, c0, *options(sweep), keep))
    inputs = [t.requires_grad_(requires_grad) for t in pair_inputs(dtype, layout)]
    torch.library.opcheck(pair_op, (*inputs, *options(DIAGONAL, MIRRORED), keep))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("needs", [[True] * 4, [False, True, False, True]])
def test_opcheck_of_the_backward_operators(dtype, layout, keep, needs):
    inputs = in_layout(inputs_for(SIZE, ROW, dtype=dtype), layout)
    hidden, saved = op(*inputs, *options(ROW), keep)
    torch.library.opcheck(backward_op, (torch.randn_like(hidden), *inputs, saved, *options(ROW), needs))

    inputs, choices = pair_inputs(dtype, layout), options(DIAGONAL, MIRRORED)
    first, second, saved = pair_op(*inputs, *choices, keep)
    grads = [torch.randn_like(first), torch.randn_like(second)]
    torch.library.opcheck(pair_backward_op, (grads[0], *inputs[:4], grads[1], *inputs[4:], saved, *choices, needs * 2))


def test_opcheck_of_the_derivative_of_backward():
    """It is traced as plain PyTorch, which takes a while: one small image."""
    inputs = inputs_for((1, 2), ROW, batch=1, units=1)
    hidden, saved = op(*inputs, *options(ROW), True)
    leaves = [t.requires_grad_() for t in (torch.randn_like(hidden), *inputs)]
    torch.library.opcheck(backward_op, (*leaves, saved, *options(ROW), [True] * 4))


# --- torch.compile ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("layout", [*DENSE, "window"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_it_traces_in_one_graph_forward_and_backward(layout, dtype, dynamic, checkpoint):
    inputs = in_layout(inputs_for(SIZE, ROW, dtype=dtype), layout)
    assert_compiled_equals_eager(
        lambda *a: row_lstm(*a, checkpoint=checkpoint), inputs, backend="aot_eager", dynamic=dynamic
    )
    inputs = in_layout(bilstm_inputs(SIZE, dtype=dtype), layout)
    assert_compiled_equals_eager(
        lambda *a: diagonal_bilstm(*a, checkpoint=checkpoint), inputs, backend="aot_eager", dynamic=dynamic
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", DENSE)
def test_it_compiles_with_inductor_forward_and_backward(layout):
    """With work before and after that Inductor generates code for, which relies on the promised strides."""

    def function(left, right, *others):
        return diagonal_bilstm(left * 2 + 1, right.sin(), *others).sigmoid() * 3

    assert_compiled_equals_eager(function, in_layout(bilstm_inputs(SIZE, dtype=torch.float32), layout))


# --- autocast ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=short)
@pytest.mark.parametrize("layout", DENSE)
def test_autocast_computes_in_16_bit_and_gives_float32_gradients(dtype, layout):
    for function, inputs in (
        (ROW, inputs_for(SIZE, ROW, dtype=torch.float32)),
        (diagonal_bilstm, bilstm_inputs(SIZE, dtype=torch.float32)),
    ):

        def under_autocast(*tensors, function=function):
            with torch.autocast("cpu", dtype=dtype):
                return function(*tensors)

        def cast_by_hand(*tensors, function=function):
            return function(*(t.to(dtype) for t in tensors))

        given = in_layout(inputs, layout)
        got, expected = gradients(under_autocast, given), gradients(cast_by_hand, given)
        assert got[0].dtype == dtype
        assert got[0].equal(expected[0])
        for one, other in zip(got[1:], expected[1:], strict=True):
            assert one.dtype == torch.float32
            assert one.equal(other)


def test_autocast_brings_mixed_dtypes_together_and_can_be_left():
    gates, weight, h0, c0 = inputs_for(SIZE, ROW, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = row_lstm(gates.bfloat16(), weight, h0.half(), c0)
        with torch.autocast("cpu", enabled=False):
            assert row_lstm(gates, weight, h0, c0).dtype == torch.float32
    assert mixed.dtype == torch.bfloat16


def test_autocast_leaves_float64_alone():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ROW(*inputs_for(SIZE, ROW)).dtype == torch.float64


def test_a_double_backward_under_autocast_works():
    gates, weight, *_ = (t.requires_grad_() for t in inputs_for(SIZE, ROW, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (grad,) = torch.autograd.grad(row_lstm(gates, weight).float().square().sum(), gates, create_graph=True)
        penalty = grad.square().mean()
    penalty.backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.abs().sum() > 0


def test_compile_under_autocast_equals_eager_under_autocast():
    inputs = inputs_for(SIZE, ROW, dtype=torch.float32)
    compiled = torch.compile(row_lstm, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(*inputs).equal(row_lstm(*inputs))
