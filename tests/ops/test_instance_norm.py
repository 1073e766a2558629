"""Instance norm and activation: against float64 over a grid, its derivatives, and what else it promises."""

import pytest
import torch
import torch.nn.functional as F
from helpers import grids
from helpers.derivatives import of_penalty
from helpers.grids import (
    DTYPES,
    ISAS,
    LAYOUTS,
    assert_within_bound,
    check_cases_under,
    laid_out,
    name_of,
    nan_in_fresh_memory,
    needs_native,
    pairwise,
    short,
)
from torch import Tensor, func, nn

from genkernels.nn import InstanceNormAct2d
from genkernels.ops import instance_norm_act
from genkernels.ops.conv_bn_act.heuristics import always_kernel
from genkernels.ops.core.activation import act
from genkernels.ops.core.implementations import forced, last

ops = torch.ops.genkernels
SLOPE = 0.2
IMAGE = torch.randn(2, 3, 4, 5)
ACTIVATIONS = (None, "relu", "leaky_relu", "tanh", "sigmoid")
AXES = {
    "dtype": DTYPES,
    "batch": (1, 3, 9),
    # Shorter than a register, exactly some, cut ones, more than a run of them.
    "size": ((2, 3), (1, 9), (11, 2), (4, 4), (5, 7), (17, 6), (3, 40), (33, 70)),
    # One, fewer than a register, a group that is cut, more than the largest group.
    "channels": (1, 3, 8, 33, 64, 300),
    "affine": ("both", "none", "weight", "bias"),
    "activation": ACTIVATIONS,
    # Not an image that repeats one number: it has no variance, and nothing but rounding is left of it.
    "x_layout": [layout for layout in LAYOUTS if layout != "expanded_pixels"],
    "grad_layout": LAYOUTS,
}
CASES = pairwise(AXES)


def plain(x: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str | None) -> Tensor:
    return act(F.instance_norm(x, weight=weight, bias=bias), activation or "none", SLOPE)


def ours(x: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str | None) -> Tensor:
    return instance_norm_act(x, weight, bias, activation=activation, negative_slope=SLOPE)


def with_gradients(function, inputs: list[Tensor | None], grad_output: Tensor, activation: str | None) -> list[Tensor]:
    return grids.with_gradients(lambda *t: function(*t, activation), inputs, grad_output)


def tensors(case: dict) -> tuple[list[Tensor | None], Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (case["batch"], case["channels"], *case["size"])
    x, grad = (torch.randn(shape, generator=generator).to(case["dtype"]) for _ in range(2))
    weight, bias = (torch.randn(shape[1], generator=generator).to(case["dtype"]) for _ in range(2))
    x = laid_out(x * 2, case["x_layout"])
    kept = [t if case["affine"] in ("both", name) else None for t, name in ((weight, "weight"), (bias, "bias"))]
    return [x, *kept], laid_out(grad, case["grad_layout"])


def check(case: dict) -> None:
    inputs, grad_output = tensors(case)
    activation = case["activation"]
    # Beside a kink, where rounding decides, elements send no gradient.
    argument = plain(*(None if t is None else t.double() for t in inputs), None)
    grad_output = grad_output.masked_fill(argument.abs() < (1e-4 if case["dtype"] == torch.float32 else 3e-2), 0)
    with nan_in_fresh_memory():
        got = with_gradients(ours, inputs, grad_output, activation)
    assert all(t.dtype == case["dtype"] for t in got)
    names = [name for name, t in zip(("x", "weight", "bias"), inputs, strict=True) if t is not None]
    assert_within_bound(
        ("y", *names), got, lambda *t: with_gradients(plain, t[:3], t[3], activation), [*inputs, grad_output]
    )


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_result_and_gradients_are_within_the_bound(case):
    check(case)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_is_within_the_bound(isa):
    check_cases_under(isa, "ops.test_instance_norm")


# --- derivatives ---

FORMS = [(ACTIVATIONS[k], affine) for k, affine in enumerate((True, True, False, True, False))]


def small(affine: bool, dtype=torch.float64) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 4, 3), (3,), (3,)]
    drawn = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes
    ]
    return drawn if affine else [drawn[0], None, None]


@pytest.mark.parametrize("activation, affine", FORMS)
def test_gradcheck_backward_and_forward_mode_and_over_backward(activation, affine):
    inputs = [t for t in small(affine) if t is not None]

    def function(x, weight=None, bias=None):
        return ours(x, weight, bias, activation)

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation, affine", FORMS)
def test_a_gradient_penalty_is_that_of_pytorch(activation, affine, dtype):
    def penalty(function, dtype):
        inputs = [t for t in small(affine, dtype) if t is not None]
        return of_penalty(lambda x, w=None, b=None: function(x, w, b, activation), inputs)

    for one, other in zip(penalty(ours, dtype), penalty(plain, torch.float64), strict=True):
        size = float(other.abs().max())
        close = 1e-9 if dtype == torch.float64 else 2e-4
        torch.testing.assert_close(one.double() / size, other / size, rtol=0, atol=close)


TRANSFORMS = {
    "grad": lambda f: func.grad(lambda *a: f(*a).pow(2).sum(), (0, 1, 2)),
    "jvp": lambda f: lambda *a: func.jvp(f, a, tuple(t.cos() for t in a)),
    "jvp of grad": lambda f: (
        lambda *a: func.jvp(func.grad(lambda *b: f(*b).pow(2).sum(), (0, 1, 2)), a, tuple(t.cos() for t in a))
    ),
    "vmap": lambda f: lambda x, *a: func.vmap(f, (0, None, None))(torch.stack([x, x.cos()]), *a),
    "vmap of grad": lambda f: (
        lambda x, *a: func.vmap(func.grad(lambda *b: f(*b).pow(2).sum(), 1), (0, None, None))(
            torch.stack([x, x.cos()]), *a
        )
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_those_of_pytorch(name):
    inputs = [t.detach() for t in small(True)]
    results = [TRANSFORMS[name](lambda *a, f=f: f(*a, "tanh"))(*inputs) for f in (ours, plain)]
    torch.testing.assert_close(*results)


# --- what else it promises ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("affine", [True, False])
def test_opcheck(dtype, affine):
    tensors = small(affine, dtype)
    arguments = (*tensors, "relu", 0.0, 1e-5)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(ops.instance_norm_act.default, arguments, test_utils=checks)
    with torch.no_grad():
        y, statistics = ops.instance_norm_act(*arguments)
    given = [None if t is None else t.detach() for t in tensors]
    torch.library.opcheck(
        ops.instance_norm_act_backward.default,
        (torch.ones_like(y), *given, statistics, "relu", 0.0, 1e-5, [True, affine, affine]),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_each_gradient_alone_is_what_it_is_among_all():
    inputs = small(True, torch.float32)
    grad = torch.randn(inputs[0].shape)
    together = torch.autograd.grad(ours(*inputs, "tanh"), inputs, grad)
    for k, expected in enumerate(together):
        alone = [t.detach().requires_grad_(i == k) for i, t in enumerate(inputs)]
        assert torch.autograd.grad(ours(*alone, "tanh"), alone[k], grad)[0].equal(expected)


@needs_native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_mean_a_thousand_times_the_deviation_does_not_spoil_the_variance(layout):
    x = laid_out(torch.randn(4, 20, 33, 35) + 1000, layout)
    torch.testing.assert_close(
        ours(x, None, None, None).double(), plain(x.double(), None, None, None), rtol=0, atol=3e-4
    )


@needs_native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_two_pixels_lose_no_more_than_rounding(layout):
    """They become -1 and 1, whatever they were, and what is left of their gradient is of the order of eps."""
    x = laid_out(torch.randint(-9, 9, (3, 9, 1, 2)) + torch.tensor([0.0, 20.0]), layout).requires_grad_()
    grad = torch.randn(x.shape)
    y = ours(x, None, None, None)
    torch.testing.assert_close(y, torch.tensor([-1.0, 1.0]).expand_as(y), rtol=0, atol=1e-5)
    (got,) = torch.autograd.grad(y, x, grad)
    wide = x.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(plain(wide, None, None, None), wide, grad.double())
    scale = grad.abs().sum(-1, keepdim=True) / x.detach().std(-1, unbiased=False, keepdim=True)
    assert bool(((got - exact).abs() <= 1e-6 * scale).all())


@needs_native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_number_reaches_its_channel_of_its_image_alone(layout, value):
    x = torch.randn(3, 40, 9, 7)
    clean = with_gradients(ours, [x, None, None], torch.ones_like(x), "relu")
    spoilt = x.clone()
    spoilt[1, 17, 3, 2] = value
    grads = with_gradients(ours, [laid_out(spoilt, layout), None, None], torch.ones_like(x), "relu")
    for got, before in zip(grads, clean, strict=True):
        same = (got - before).abs() < 1e-5
        assert not same[1, 17].all()
        same[1, 17] = True
        assert same.all()
    expected = plain(spoilt, None, None, "relu")
    assert grads[0].isnan().equal(expected.isnan())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
def test_compiled_and_with_any_batch_it_is_what_it_is_eager(activation, dtype):
    torch._dynamo.reset()
    layer = InstanceNormAct2d(5, affine=True, activation=activation).to(dtype)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3):
        x = torch.randn(batch, 5, 6, 7, dtype=dtype)
        results = []
        for function in (layer, compiled):
            leaf = x.clone().requires_grad_()
            with always_kernel():
                y = function(leaf)
            results.append((y, *torch.autograd.grad(y.float().square().sum(), [leaf, *layer.parameters()])))
        torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=short)
def test_the_layer_is_instance_norm_and_activation_with_the_same_parameters(dtype):
    plain_layer = nn.InstanceNorm2d(6, eps=1e-3, affine=True, dtype=dtype)
    nn.init.normal_(plain_layer.weight)
    layer = InstanceNormAct2d(6, eps=1e-3, affine=True, activation="leaky_relu", negative_slope=0.2, dtype=dtype)
    layer.load_state_dict(plain_layer.state_dict())
    for shape in ((2, 6, 5, 4), (6, 5, 4)):
        x = torch.randn(shape, dtype=dtype)
        for training in (True, False):
            expected = F.leaky_relu(plain_layer.train(training)(x), 0.2)
            torch.testing.assert_close(layer.train(training)(x), expected)
    assert "leaky_relu" in repr(layer)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("recorded", [True, False])
def test_the_layer_keeps_layout_and_results_whichever_is_quicker(layout, recorded):
    layer = InstanceNormAct2d(4, affine=True, activation="tanh")
    for size in (5, 100):  # below and above the number of values from which the kernel is
        x = laid_out(torch.randn(2, 4, size, size), layout)
        with torch.set_grad_enabled(recorded):
            y = layer(x)
        assert y.stride() == x.stride()
        torch.testing.assert_close(y, plain(x, layer.weight, layer.bias, "tanh"))


@needs_native
@pytest.mark.parametrize(("layout", "name"), [("contiguous", "planes"), ("channels_last", "channel_groups")])
def test_each_layout_has_its_implementation_and_the_other_cannot_be_forced_on_it(layout, name):
    inputs = [laid_out(torch.randn(2, 5, 6, 7), layout), torch.randn(5), torch.randn(5)]
    expected = with_gradients(ours, inputs, torch.ones_like(inputs[0]), "relu")
    assert last() == name
    for forced_name in ("planes", "channel_groups"):
        with forced(forced_name):
            got = with_gradients(ours, inputs, torch.ones_like(inputs[0]), "relu")
        assert last() == name and all(a.equal(b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_do_not_depend_on_the_number_of_threads(layout, threads):
    inputs = [laid_out(torch.randn(1, 100, 33, 35), layout), torch.randn(100), torch.randn(100)]
    results = []
    for count in (1, 2, 3):  # units of other sizes
        threads(count)
        results.append(with_gradients(ours, inputs, torch.ones_like(inputs[0]), "tanh"))
    assert all(one.equal(another) for other in results[1:] for one, another in zip(results[0], other, strict=True))


def test_the_layer_refuses_what_does_not_fit_where_pytorch_is_quicker_too():
    layer = InstanceNormAct2d(3, affine=True)
    for x, message in (
        (IMAGE[..., :1, :1], "x: expected more than one pixel"),
        (IMAGE.int(), "x: expected a floating-point dtype"),
        (IMAGE.bfloat16().to("meta"), "weight: expected the device of x"),
        (IMAGE.half().double(), "weight: expected torch.float64"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            layer(x)


def test_an_empty_batch_gives_an_empty_result_and_zero_gradients():
    layer = InstanceNormAct2d(3, affine=True, activation="relu")
    x = torch.randn(0, 3, 4, 5, requires_grad=True)
    y = layer(x)
    assert y.shape == x.shape
    grads = torch.autograd.grad(y.sum(), [x, *layer.parameters()])
    assert [g.tolist() for g in grads] == [[], [0.0] * 3, [0.0] * 3]


BAD = {
    "no tensor": (lambda: instance_norm_act([1.0]), TypeError, r"x: expected a torch\.Tensor; got list"),
    "rank": (lambda: instance_norm_act(IMAGE[0, 0]), ValueError, r"x: expected \[N, C, H, W\] or \[C, H, W\]; got"),
    "whole numbers": (lambda: instance_norm_act(IMAGE.int()), TypeError, "x: expected a floating-point dtype"),
    "one pixel": (lambda: instance_norm_act(IMAGE[..., :1, :1]), ValueError, "x: expected more than one pixel"),
    "shape": (lambda: instance_norm_act(IMAGE, torch.ones(4)), ValueError, r"weight: expected shape \[3\]; got"),
    "dtype": (
        lambda: instance_norm_act(IMAGE, None, torch.ones(3).double()), TypeError, r"bias: expected torch\.float32",
    ),
    "activation": (lambda: instance_norm_act(IMAGE, activation="gelu"), ValueError, "activation: expected None, 'r"),
    "slope": (lambda: instance_norm_act(IMAGE, negative_slope=-1.0), ValueError, "negative_slope: expected at least"),
    "device": (
        lambda: instance_norm_act(IMAGE, torch.ones(3, device="meta")), ValueError, "weight: expected the device",
    ),
    "running": (lambda: InstanceNormAct2d(3, track_running_stats=True), ValueError, "track_running_stats: expected"),
    "channels": (lambda: InstanceNormAct2d(4)(IMAGE), ValueError, "input: expected 4 channels"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named_with_what_was_expected(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=f"^{message}"):
        call()


def test_under_autocast_it_takes_what_a_convolution_gives():
    layer = InstanceNormAct2d(4, affine=True, activation="relu")
    with torch.autocast("cpu", torch.bfloat16):
        z = F.conv2d(torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3))
        y, expected = layer(z), F.relu(F.instance_norm(z, weight=layer.weight, bias=layer.bias))
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
