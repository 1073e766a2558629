"""The masked convolution among PyTorch's machinery: layouts, opcheck, torch.compile, export, autocast."""

import pytest
import torch
import torch.nn.functional as F
from helpers.compiled import assert_compiled_equals_eager, assert_promised, gradients
from helpers.grids import DENSE, DTYPES, LAYOUTS, SLICED, laid_out, needs_native, short
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from genkernels import nn as gnn
from genkernels.ops import masked_conv2d

pytestmark = pytest.mark.usefixtures("fresh_compiler")

CHANNELS_LAST = torch.channels_last
forward_op = torch.ops.genkernels.masked_conv2d.default
backward_op = torch.ops.genkernels.masked_conv2d_backward.default


def inputs_for(
    dtype=torch.float32, *, channels=(4, 6), x_layout="contiguous", weight_layout="contiguous", kernel=(3, 3)
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = channels
    x, weight = (
        laid_out(torch.randn(shape, generator=generator).to(dtype), layout)
        for shape, layout in (((2, inputs, 7, 9), x_layout), ((outputs, inputs, *kernel), weight_layout))
    )
    return x, weight, torch.randn(outputs, generator=generator).to(dtype)


def masked(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return masked_conv2d(x, weight, bias, mask_type="B", channel_groups=2, activation="relu")


def is_channels_last(t: Tensor) -> bool:
    return t.is_contiguous(memory_format=CHANNELS_LAST) and not t.is_contiguous()


# --- layouts ---


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=short)
@pytest.mark.parametrize("weight_layout", DENSE)
@pytest.mark.parametrize("x_layout", [*DENSE, *SLICED])
def test_an_image_keeps_its_layout_and_the_weight_gradient_that_of_the_weight(x_layout, weight_layout, dtype):
    inputs = inputs_for(dtype, x_layout=x_layout, weight_layout=weight_layout)
    y, grad_x, grad_weight, _ = gradients(masked, inputs)
    last = x_layout in ("channels_last", "window_channels_last")
    assert is_channels_last(y) == last
    assert is_channels_last(grad_x) == last
    assert y.is_contiguous() == grad_x.is_contiguous() == (not last)
    assert grad_weight.stride() == inputs[1].stride()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("weight_layout", DENSE)
@pytest.mark.parametrize("x_layout", DENSE)
def test_an_image_of_one_channel_gets_the_layout_that_nn_conv2d_gives_it(x_layout, weight_layout, dtype):
    """One channel is dense in both layouts; its strides, or else those of the weight, say which is meant."""
    inputs = inputs_for(dtype, channels=(1, 6), x_layout=x_layout, weight_layout=weight_layout)
    expected = F.conv2d(*inputs, padding=1)
    assert masked_conv2d(*inputs, mask_type="A").stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("x_layout", LAYOUTS)
@pytest.mark.parametrize("channels", [(4, 6), (1, 6), (4, 1), (1, 1)])
def test_the_fake_kernels_promise_the_strides_that_come(channels, x_layout, dtype):
    options = ["B", 1, "blocks", [1, 1], "relu"]
    for weight_layout in LAYOUTS:
        x, weight, bias = inputs_for(dtype, channels=channels, x_layout=x_layout, weight_layout=weight_layout)
        y = forward_op(x, weight, bias, *options)
        grads = backward_op(torch.ones_like(y), x, weight, y, *options, [True, True, True])
        with FakeTensorMode() as mode:
            fx, fw, fb, fy = (mode.from_tensor(t) for t in (x, weight, bias, y))
            fakes = (
                forward_op(fx, fw, fb, *options),
                *backward_op(fy, fx, fw, fy, *options, [True, True, True]),
            )
        assert_promised((y, *grads), fakes, weight_layout)


# --- opcheck ---


OPCHECK_OPTIONS = [["A", 1, "blocks", [1, 1], "none"], ["B", 2, "interleaved", [1, 2], "relu"]]


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=needs_native)])
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("options", OPCHECK_OPTIONS, ids=["A", "B-groups-relu"])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_opcheck_of_the_forward_operator(dtype, layout, options, requires_grad):
    x, weight, bias = (
        t.requires_grad_(requires_grad) for t in inputs_for(dtype, x_layout=layout, weight_layout=layout)
    )
    torch.library.opcheck(forward_op, (x, weight, bias, *options))
    torch.library.opcheck(forward_op, (x, weight, None, *options))


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=needs_native)])
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("options", OPCHECK_OPTIONS, ids=["A", "B-groups-relu"])
@pytest.mark.parametrize("needs", [[True, True, True], [False, True, False]])
def test_opcheck_of_the_backward_operator(dtype, layout, options, needs):
    x, weight, bias = inputs_for(dtype, x_layout=layout, weight_layout=layout)
    output = forward_op(x, weight, bias, *options)
    grad = torch.randn_like(output)
    tensors = [t.requires_grad_() for t in (grad, x, weight)]
    torch.library.opcheck(backward_op, (*tensors, output if options[-1] == "relu" else None, *options, needs))


# --- torch.compile and export ---


CALLS = {
    "contiguous": {},
    "channels_last": {"x_layout": "channels_last", "weight_layout": "channels_last"},
    "sliced": {"x_layout": "window", "weight_layout": "every_second"},
    "sliced, channels last": {"x_layout": "window_channels_last"},
    "one channel, channels_last weight": {"channels": (1, 6), "weight_layout": "channels_last"},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_it_traces_in_one_graph_forward_and_backward(call, dtype, dynamic):
    def function(x, weight, bias):
        return masked_conv2d(x, weight, bias, mask_type="A", activation="relu")

    assert_compiled_equals_eager(function, inputs_for(dtype, **CALLS[call]), backend="aot_eager", dynamic=dynamic)


@pytest.mark.slow
@pytest.mark.parametrize("layout", DENSE)
def test_it_compiles_with_inductor_forward_and_backward(layout):
    """With work before and after that Inductor generates code for, which relies on the promised strides."""

    def function(x, weight, bias):
        return masked(x * 2 + 1, weight, bias).sigmoid() * 3

    assert_compiled_equals_eager(function, inputs_for(x_layout=layout))


def test_a_compiled_layer_serves_other_batch_sizes_without_failing():
    layer = gnn.MaskedConv2d(3, 6, 3, mask_type="B", channel_groups=3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for batch in (4, 2, 1, 3):
        x = torch.randn(batch, 3, 8, 5)
        torch.testing.assert_close(compiled(x), layer(x))


def test_export_keeps_the_operator_and_its_result():
    layer, x = gnn.MaskedConv2d(3, 6, 3, mask_type="B", activation="relu"), torch.randn(2, 3, 8, 5)
    program = torch.export.export(layer, (x,))
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [forward_op]
    torch.testing.assert_close(program.module()(x), layer(x))


# --- autocast ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=short)
@pytest.mark.parametrize("layout", DENSE)
def test_autocast_computes_in_16_bit_and_gives_float32_gradients(dtype, layout):
    inputs = inputs_for(x_layout=layout)

    def under_autocast(*tensors):
        with torch.autocast("cpu", dtype=dtype):
            return masked(*tensors)

    def cast_by_hand(*tensors):
        return masked(*(t.to(dtype) for t in tensors))

    got, expected = gradients(under_autocast, inputs), gradients(cast_by_hand, inputs)
    assert got[0].dtype == dtype
    for one, other, source in zip(got[1:], expected[1:], inputs, strict=True):
        assert one.dtype == torch.float32
        assert one.equal(other)
        assert one.shape == source.shape
    assert got[0].equal(expected[0])


def test_autocast_brings_mixed_dtypes_together_and_can_be_left():
    x, weight, bias = inputs_for()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = masked(x.bfloat16(), weight, bias.half())
        with torch.autocast("cpu", enabled=False):
            assert masked(x, weight, bias).dtype == torch.float32
    assert mixed.dtype == torch.bfloat16


def test_autocast_leaves_float64_alone_as_it_does_for_nn_conv2d():
    inputs = inputs_for(torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.conv2d(*inputs).dtype == torch.float64
        assert masked(*inputs).dtype == torch.float64


def test_autocast_refuses_an_integer_image_by_name():
    x, weight, bias = inputs_for()
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(TypeError, match=r"^x: expected a floating-point"),
    ):
        masked(x.long(), weight, bias)


def test_a_double_backward_under_autocast_works():
    x, weight, bias = (t.requires_grad_() for t in inputs_for())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (grad_x,) = torch.autograd.grad(masked(x, weight, bias).float().square().sum(), x, create_graph=True)
        penalty = grad_x.square().mean()
    penalty.backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.abs().sum() > 0


def test_compile_under_autocast_equals_eager_under_autocast():
    x, weight, bias = inputs_for()
    compiled = torch.compile(masked, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(x, weight, bias).equal(masked(x, weight, bias))
