"""Convolution blocks beside their sum: statistics, layouts, opcheck, compile, autocast, errors."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.compiled import assert_compiled_equals_eager
from helpers.grids import DENSE, DTYPES, SLICED, laid_out, needs_native, short
from torch import Tensor

from genkernels.nn import ConvBnAct2d, ConvTransposeBnAct2d
from genkernels.ops import conv2d_bn_act, conv_transpose2d_bn_act
from genkernels.ops.conv_bn_act.heuristics import always_kernel

pytestmark = pytest.mark.usefixtures("fresh_compiler")

ops = torch.ops.genkernels
FUNCTIONS = {True: conv_transpose2d_bn_act, False: conv2d_bn_act}


def inputs_for(
    dtype=torch.float32, transposed=True, x_layout="contiguous", weight_layout="contiguous", channels=(4, 6)
):
    generator = torch.Generator().manual_seed(0)
    pair = channels if transposed else channels[::-1]
    return [
        laid_out(torch.randn(shape, generator=generator).to(dtype), layout)
        for shape, layout in (((2, channels[0], 7, 9), x_layout), ((*pair, 4, 4), weight_layout))
    ]


def block(transposed: bool, norm: str = "training", **options):
    def call(x: Tensor, weight: Tensor) -> Tensor:
        outputs = weight.shape[1 if transposed else 0]
        if norm == "evaluation":
            options.update(running_mean=x.new_ones(outputs), running_var=x.new_ones(outputs))
        return FUNCTIONS[transposed](
            x, weight, stride=2, padding=1, batch_norm=norm != "none", training=norm == "training",
            activation="relu", **options,
        )  # fmt: skip

    return call


def gradients(function, inputs) -> tuple[Tensor, ...]:
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = function(*inputs)
    return y.detach(), *torch.autograd.grad(y, inputs, torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype))


# --- statistics ---


@needs_native
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("layout", DENSE)
def test_a_mean_a_thousand_times_the_deviation_does_not_spoil_the_variance(transposed, layout):
    """E[x²] - E[x]² would keep one digit of it in float32."""
    x = laid_out(torch.randn(8, 16, 16, 16) + 1000, layout)
    weight = torch.eye(16)[:, :, None, None].contiguous()
    _, z, statistics = ops.conv_bn_act(x, weight, None, None, transposed, [1, 1], [0, 0], [0, 0], "none", 0.0, 1e-5, "")
    expected = z.double()
    torch.testing.assert_close(statistics[0].double(), expected.mean((0, 2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(statistics[1].double(), expected.var((0, 2, 3), unbiased=False), rtol=1e-5, atol=0)
    y = FUNCTIONS[transposed](x, weight, batch_norm=True, training=True)
    torch.testing.assert_close(y.double(), F.batch_norm(expected, None, None, training=True), rtol=0, atol=3e-4)


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=short)
def test_the_operators_change_none_of_their_arguments_and_training_updates_the_running_statistics_alone(dtype):
    x, weight = inputs_for(dtype)
    running = {"running_mean": torch.zeros(6, dtype=dtype), "running_var": torch.ones(6, dtype=dtype)}
    kept = [t.clone() for t in (x, weight)]
    y = FUNCTIONS[True](x, weight, batch_norm=True, training=True, momentum=1.0, **running)
    z = F.conv_transpose2d(x.double(), weight.double())
    close = {"rtol": 1e-2, "atol": 3e-2} if dtype in DTYPES[1:] else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(running["running_mean"].double(), z.mean((0, 2, 3)), **close)
    torch.testing.assert_close(running["running_var"].double(), z.var((0, 2, 3)), **close)
    assert all(a.equal(b) for a, b in zip(kept, (x, weight), strict=True))
    before = running["running_mean"].clone()
    FUNCTIONS[True](x, weight, batch_norm=True, training=False, **running)
    assert running["running_mean"].equal(before)
    assert not y.requires_grad


# --- layouts ---


@pytest.mark.parametrize("norm", ["none", "training", "evaluation"])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=short)
def test_an_image_keeps_its_layout_and_the_weight_gradient_that_of_the_weight(dtype, transposed, norm):
    for x_layout in (*DENSE, *SLICED):
        for weight_layout in DENSE:
            inputs = inputs_for(dtype, transposed, x_layout, weight_layout)
            y, grad_x, grad_weight = gradients(block(transposed, norm), inputs)
            last = x_layout in ("channels_last", "window_channels_last")
            for t in (y, grad_x):
                assert t.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            assert grad_weight.stride() == inputs[1].stride()


@pytest.mark.parametrize("transposed", [True, False])
def test_an_image_without_a_batch_dimension_is_a_batch_of_one(transposed):
    x, weight = inputs_for(transposed=transposed)
    assert block(transposed, "none")(x[0], weight).equal(block(transposed, "none")(x[:1], weight)[0])


@needs_native
@pytest.mark.parametrize("transposed", [True, False])
def test_any_number_of_threads_gives_the_same_weight_gradient_to_the_last_bit(transposed, threads):
    x, weight = torch.randn(9, 40, 12, 12), torch.randn(40, 40, 4, 4)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(gradients(block(transposed, "none"), (x, weight)))
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))


# --- opcheck, torch.compile, export ---

OPTIONS = {True: [True, [2, 1], [1, 0], [1, 0]], False: [False, [2, 1], [1, 0], [0, 0]]}


@pytest.mark.parametrize(
    ("layout", "dtype", "transposed"),
    [
        ("channels_last", torch.float64, True),
        pytest.param("contiguous", torch.float32, True, marks=needs_native),
        pytest.param("channels_last", torch.float32, False, marks=needs_native),
    ],
)
def test_opcheck_of_all_four_operators(layout, dtype, transposed):
    x, weight = (t.requires_grad_() for t in inputs_for(dtype, transposed, layout, layout))
    one, two = (torch.randn(6, dtype=dtype, requires_grad=True) for _ in range(2))
    options = [*OPTIONS[transposed], "tanh", 0.0]
    torch.library.opcheck(ops.conv_act, (x, weight, one, two, *options))
    torch.library.opcheck(ops.conv_act, (x, weight, None, None, *OPTIONS[transposed], "leaky_relu", 0.2))
    torch.library.opcheck(ops.conv_bn_act, (x, weight, one, two, *options, 1e-5, ""))
    torch.library.opcheck(ops.conv_bn_act, (x, weight, None, None, *options, 1e-5, ""))
    with torch.no_grad():
        y, z, statistics = ops.conv_bn_act(x, weight, one, two, *options, 1e-5, "")
    grad = torch.randn_like(y).requires_grad_()
    for needs in ([True] * 3, [False, True, False]):
        torch.library.opcheck(ops.conv_act_backward, (grad, x, weight, y, *options, needs))
    for needs in ([True] * 4, [False, True, False, True]):
        torch.library.opcheck(
            ops.conv_bn_act_backward, (grad, x, weight, one, two, z, statistics, *options, 1e-5, "", needs)
        )


@pytest.mark.parametrize("norm", ["none", "training", "evaluation"])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32], ids=short)
def test_it_traces_in_one_graph_forward_and_backward(dtype, transposed, norm):
    for layout in DENSE:
        inputs = inputs_for(dtype, transposed, layout, layout)
        function = block(transposed, norm)
        assert_compiled_equals_eager(function, inputs, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("cls", [ConvTransposeBnAct2d, ConvBnAct2d])
def test_a_layer_compiles_with_inductor_and_updates_its_buffers(cls, seeded):
    layers = [cls(4, 6, 4, 2, 1, activation="relu") for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    compiled = torch.compile(layers[0], fullgraph=True)
    for batch in (4, 2):
        x = torch.randn(batch, 4, 8, 6)
        y = compiled(x * 2).sigmoid()
        with always_kernel():  # as a compiled layer: PyTorch's own operators round otherwise
            expected = layers[1](x * 2).sigmoid()
        torch.testing.assert_close(y, expected)
        for layer, result in zip(layers, (y, expected), strict=True):
            layer.zero_grad()
            result.square().sum().backward()
        torch.testing.assert_close(layers[0].weight.grad, layers[1].weight.grad)
    for one, other in zip(layers[0].buffers(), layers[1].buffers(), strict=True):
        torch.testing.assert_close(one, other)


# --- autocast ---


@pytest.mark.parametrize("norm", ["none", "training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=short)
def test_autocast_computes_in_16_bit_and_gives_float32_gradients(dtype, norm):
    inputs, function = inputs_for(), block(True, norm)

    def under_autocast(*tensors):
        with torch.autocast("cpu", dtype=dtype):
            return function(*tensors)

    got = gradients(under_autocast, inputs)
    expected = gradients(lambda *tensors: function(*(t.to(dtype) for t in tensors)), inputs)
    assert got[0].dtype == dtype
    assert got[0].equal(expected[0])
    for one, other in zip(got[1:], expected[1:], strict=True):
        assert one.dtype == torch.float32
        assert one.equal(other)


def test_a_layer_under_autocast_keeps_its_batch_norm_in_float32():
    layer = ConvTransposeBnAct2d(4, 6, 4, 2, 1, activation="relu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.randn(2, 4, 5, 5))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}
    assert layer.bn.running_mean.dtype == torch.float32


# --- errors ---

GOOD = {"x": (2, 4, 5, 6), "weight": (4, 8, 3, 3), "bias": (8,)}
NORM = {"batch_norm": True, "running_mean": (8,), "running_var": (8,)}
BAD_VALUES = {
    "stride 0": ({"stride": 0}, "stride: expected one or two whole numbers of at least 1; got 0"),
    "three strides": ({"stride": (1, 1, 1)}, "stride: expected one or two {}; got (1, 1, 1)"),
    "negative padding": ({"padding": (0, -1)}, "padding: expected {}at least 0; got (0, -1)"),
    "output_padding": (
        {"stride": 2, "output_padding": 2},
        "output_padding: expected less than the stride (2, 2); got (2, 2)",
    ),
    "activation": (
        {"activation": "gelu"},
        "activation: expected None, 'relu', 'leaky_relu', 'tanh', 'sigmoid'; got 'gelu'",
    ),
    "activation none": ({"activation": "none"}, "activation: expected None, {}; got 'none'"),
    "negative_slope": ({"negative_slope": -0.1}, "negative_slope: expected at least 0; got -0.1"),
    "x of 2 dimensions": ({"x": (5, 6)}, "x: expected [N, C, H, W] or [C, H, W]; got {}[5, 6]"),
    "x of other channels": ({"x": (2, 3, 5, 6)}, "x: expected 4 channels{}; got {}[2, 3, 5, 6]"),
    "x without pixels": ({"x": (2, 4, 0, 6)}, "x: expected an image large enough{}; got 0x6"),
    "x too small": (
        {"x": (2, 4, 1, 1), "padding": 3},
        "x: expected an image large enough for kernel (3, 3){}; got 1x1",
    ),
    "weight of 3 dimensions": (
        {"weight": (4, 8, 3)},
        "weight: expected [in_channels, out_channels, kh, kw]; got {}[4, 8, 3]",
    ),
    "bias": ({"bias": (4,)}, "bias: expected shape [8]; got [4]"),
    "bn_weight": ({**NORM, "bn_weight": (8, 1)}, "bn_weight: expected shape [8]; got [8, 1]"),
    "running_mean": ({**NORM, "running_mean": (4,)}, "running_mean: expected shape [8]; got [4]"),
    "no running_var": ({**NORM, "running_var": None}, "running_var: expected a tensor, as training is False; got None"),
    "bn_weight without": ({"bn_weight": (8,)}, "bn_weight: expected None without batch_norm; got a tensor"),
    "one value": (
        {"x": (1, 4, 1, 1), "weight": (4, 8, 1, 1), "batch_norm": True, "training": True},
        "x: expected more than one value per channel when training; {}",
    ),
    "sync": ({"batch_norm": True, "training": True, "sync": object()}, "sync: {}torch.distributed{}"),
}
BAD_TYPES = {
    "integer x": (
        {"x": torch.zeros(2, 4, 5, 6, dtype=torch.int64)},
        "x: expected a floating-point dtype; got torch.int64",
    ),
    "double weight": (
        {"weight": torch.zeros(4, 8, 3, 3, dtype=torch.float64)},
        "weight: expected the dtype of x, torch.float32; got torch.float64",
    ),
    "half running_mean": (
        {**NORM, "running_mean": torch.zeros(8, dtype=torch.float16)},
        "running_mean: expected torch.float32 or torch.float32; got torch.float16",
    ),
    "x is an array": ({"x": np.zeros((2, 4, 5, 6), dtype=np.float32)}, "x: expected a torch.Tensor; got ndarray"),
    "bias is a number": ({"bias": 1.0}, "bias: expected a torch.Tensor or None; got float"),
}


@pytest.mark.parametrize("name", BAD_VALUES | BAD_TYPES)
def test_a_bad_argument_is_refused_with_name_expectation_and_value(name):
    changes, message = (BAD_VALUES | BAD_TYPES)[name]
    arguments = {n: torch.randn(v) if isinstance(v, tuple) and n not in ("stride", "padding") else v
                 for n, v in {**GOOD, **changes}.items()}  # fmt: skip
    pattern = "^" + re.escape(message).replace(re.escape("{}"), ".*") + "$"
    with pytest.raises(ValueError if name in BAD_VALUES else TypeError, match=pattern):
        conv_transpose2d_bn_act(**arguments)
