"""The Triton kernels of convolution + batch norm + activation against float64: both directions, every epilogue."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers.grids import DTYPES, assert_within_bound, laid_out, name_of, nan_in_fresh_memory, pairwise
from helpers.strided import in_turn, strided, whole_numbers
from helpers.triton_device import DEVICE, INTERPRETED, triton_tests
from torch import Tensor

from genkernels.ops import conv2d_bn_act, conv_transpose2d_bn_act
from genkernels.ops.core.activation import act

pytestmark = [*triton_tests, pytest.mark.usefixtures("one_small_tile")]

AXES = {
    "dtype": DTYPES,
    "transposed": (True, False),
    # kernel, stride, padding, and output_padding where transposed: DCGAN's, stride 1, uneven, taps fewer than phases
    "shape": (
        ((4, 4), (2, 2), (1, 1), (0, 0)),
        ((4, 4), (1, 1), (0, 0), (0, 0)),
        ((3, 3), (2, 2), (1, 1), (1, 1)),
        ((1, 2), (2, 3), (0, 0), (1, 0)),
    ),
    "channels": ((17, 5), (5, 18), (3, 33)),
    "norm": ("none", "training", "training without weights", "evaluation"),
    "activation": (None, "relu", "leaky_relu", "tanh", "sigmoid"),
    "x_layout": ("contiguous", "channels_last", "window"),
    "grad_layout": ("contiguous", "channels_last", "expanded_pixels"),
}


def plain(case: dict, inputs: dict[str, Tensor], grad_output: Tensor) -> list[Tensor]:
    """y and all gradients in plain PyTorch, in the dtype of the inputs."""
    leaves = {name: t.detach().contiguous().requires_grad_(t.dim() != 0) for name, t in inputs.items()}
    _, stride, padding, extra = case["shape"]
    bias = leaves.get("bias")
    if case["transposed"]:
        z = F.conv_transpose2d(leaves["x"], leaves["weight"], bias, stride, padding, extra)
    else:
        z = F.conv2d(leaves["x"], leaves["weight"], bias, stride, padding)
    if case["norm"] != "none":
        training = case["norm"] != "evaluation"
        mean, var = (None, None) if training else (inputs["mean"], inputs["var"])
        z = F.batch_norm(z, mean, var, leaves.get("bn_weight"), leaves.get("bn_bias"), training=training)
    y = act(z, case["activation"] or "none", 0.2)
    wanted = [leaves[name] for name in ("x", "weight", "bias", "bn_weight", "bn_bias") if name in leaves]
    return [y.detach(), *torch.autograd.grad(y, wanted, grad_output)]


def ours(case: dict, inputs: dict[str, Tensor], grad_output: Tensor) -> list[Tensor]:
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items() if name not in ("mean", "var")}
    _, stride, padding, extra = case["shape"]
    function, size = (conv_transpose2d_bn_act, {"output_padding": extra}) if case["transposed"] else (conv2d_bn_act, {})
    y = function(
        **leaves, **size, stride=stride, padding=padding,
        batch_norm=case["norm"] != "none", training=case["norm"].startswith("training"),
        running_mean=inputs.get("mean"), running_var=inputs.get("var"),
        activation=case["activation"], negative_slope=0.2,
    )  # fmt: skip
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), grad_output)]


@pytest.mark.parametrize("case", pairwise(AXES), ids=name_of)
def test_result_and_gradients_are_within_the_bound(case):
    generator = torch.Generator().manual_seed(0)
    kernel = case["shape"][0]
    channels, outputs = case["channels"]

    def random(*shape, layout="contiguous"):
        values = torch.randn(shape, generator=generator).to(DEVICE, case["dtype"])
        return laid_out(values, layout) if len(shape) == 4 else values

    weight = (channels, outputs, *kernel) if case["transposed"] else (outputs, channels, *kernel)
    size = (3, 2) if case["transposed"] else (5, 4)
    inputs = {"x": random(2, channels, *size, layout=case["x_layout"]), "weight": random(*weight) * 0.2}
    if case["norm"] in ("none", "evaluation"):
        inputs["bias"] = random(outputs)
    if case["norm"] in ("training", "evaluation"):
        inputs |= {"bn_weight": random(outputs), "bn_bias": random(outputs)}
    if case["norm"] == "evaluation":
        inputs |= {"mean": random(outputs), "var": random(outputs).square() + 0.5}
    like = plain_shape(case, inputs)
    grad_output = random(*like, layout=case["grad_layout"])
    with nan_in_fresh_memory():
        got = ours(case, inputs, grad_output)
        right = plain(case, {k: v.double() for k, v in inputs.items()}, grad_output.double())[0]
        flipped = (got[0] > 0) != (right > 0)
        if flipped.any():  # beside a kink, where rounding decides: such elements send no gradient
            grad_output = grad_output.masked_fill(flipped, 0)
            got = ours(case, inputs, grad_output)
    assert all(t.dtype == case["dtype"] for t in got[1:])
    assert_within_bound(
        ("y", *inputs)[: len(got)],
        got,
        lambda *t: plain(case, dict(zip(inputs, t, strict=False)), t[-1]),
        [*inputs.values(), grad_output],
        eps=torch.finfo(case["dtype"]).eps,  # z, and its gradient, are kept in the storage type
    )


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("size", [(3, 1), (1, 4)])
def test_single_dimensions_have_any_stride(transposed, size):
    case = {
        "transposed": transposed, "shape": ((3, 3), (1, 1), (1, 1), (0, 0)), "norm": "training", "activation": "tanh",
    }  # fmt: skip
    shapes = {"x": (1, 17, *size), "weight": (17, 17, 3, 3), "bn_weight": (17,), "bn_bias": (17,), "y": (1, 17, *size)}
    values = {name: whole_numbers(shape, k).to(DEVICE) for k, (name, shape) in enumerate(shapes.items())}
    *inputs, grad_output = values.items()
    expected = ours(case, dict(inputs), grad_output[1])
    for strides in itertools.islice(in_turn(list(shapes.values())), 3, None, 11):
        tensors = {name: strided(t, own) for (name, t), own in zip(values.items(), strides, strict=True)}
        for one, other in zip(ours(case, tensors, tensors.pop("y")), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def plain_shape(case: dict, inputs: dict[str, Tensor]) -> tuple[int, ...]:
    _, stride, padding, extra = case["shape"]
    if case["transposed"]:
        return F.conv_transpose2d(inputs["x"].float(), inputs["weight"].float(), None, stride, padding, extra).shape
    return F.conv2d(inputs["x"].float(), inputs["weight"].float(), None, stride, padding).shape


@pytest.mark.parametrize("transposed", [True, False])
def test_statistics_hold_where_the_mean_is_far_from_zero(transposed):
    """Sums of squares would cancel: a mean of 1000 and a deviation of 1."""
    function = conv_transpose2d_bn_act if transposed else conv2d_bn_act
    weight = torch.ones(1, 1, 1, 1, device=DEVICE)
    x = torch.randn(2, 1, 9, 8, device=DEVICE) + 1000
    mean, var = torch.zeros(1, device=DEVICE), torch.zeros(1, device=DEVICE)
    function(x, weight, batch_norm=True, training=True, momentum=1.0, running_mean=mean, running_var=var)
    assert mean.item() == pytest.approx(x.double().mean().item(), rel=1e-6)
    assert var.item() == pytest.approx(x.double().var().item(), rel=1e-3)


# --- on a GPU alone ---


@pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="needs a GPU")
@pytest.mark.parametrize("transposed", [True, False])
def test_a_cuda_graph_captures_a_training_step_and_repeats_it_bit_by_bit(transposed):
    function = conv_transpose2d_bn_act if transposed else conv2d_bn_act
    x, weight = (torch.randn(s, device=DEVICE, requires_grad=True) for s in ((4, 32, 8, 8), (32, 32, 4, 4)))

    def step():
        y = function(x, weight, stride=2, padding=1, batch_norm=True, training=True, activation="relu")
        return y.detach(), *torch.autograd.grad(y.square().sum(), (x, weight))

    expected = step()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(a.equal(b) for a, b in zip(captured, expected, strict=True))
