"""The gated masked convolution: what it computes, its derivatives, and the operator that a GPU runs."""

import copy

import pytest
import torch
from helpers.grids import DENSE, laid_out
from torch import Tensor

from genkernels.models import GatedPixelCNN
from genkernels.nn import GatedMaskedConv2d
from genkernels.ops import masked_conv2d_gated
from genkernels.ops.masked_conv import derivatives, dispatch, functional, schema
from ops.test_masked_conv_gated_triton import live_taps, ours, plain


@pytest.fixture
def through_the_operator(monkeypatch):
    """CPU tensors go through the operator of the GPU, on its kernels in PyTorch."""
    monkeypatch.setattr(dispatch, "gate_is_fused", lambda x: True)


def tensors(dtype: torch.dtype = torch.float64, layout: str = "contiguous") -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"x": (2, 3, 2, 4), "weight": (10, 3, 3, 3), "bias": (10,), "addend": (2, 10, 2, 4)}
    made = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    return made | {"x": laid_out(made["x"], layout)}


OPTIONS = {"mask_type": "B", "channel_groups": 2}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("without", [(), ("bias",), ("addend",), ("bias", "addend")])
@pytest.mark.parametrize("mask_type, groups", [("A", 1), ("B", 1), ("A", 3), ("B", 2)])
def test_it_is_a_gate_behind_a_masked_convolution_and_so_are_its_gradients(
    mask_type, groups, without, fused, monkeypatch
):
    monkeypatch.setattr(dispatch, "gate_is_fused", lambda x: fused)
    inputs = {name: t for name, t in tensors().items() if name not in without}
    grad_output = torch.randn(2, 5, 2, 4, dtype=torch.float64)
    got = ours(inputs, grad_output, mask_type=mask_type, channel_groups=groups)
    expected = plain(inputs, grad_output, live_taps(10, 3, (3, 3), mask_type, groups))
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape", [(10, 2, 4), (10, 1, 1), (1, 1), (10, 2, 1)])
def test_an_addend_broadcasts_and_an_image_without_a_batch_is_a_batch_of_one(shape, fused, monkeypatch):
    monkeypatch.setattr(dispatch, "gate_is_fused", lambda x: fused)
    x, weight, bias, _ = tensors().values()
    addend = torch.randn(shape, dtype=torch.float64)
    y = masked_conv2d_gated(x[1], weight, bias, addend, **OPTIONS)
    full = addend.expand(2, 10, 2, 4).contiguous()
    torch.testing.assert_close(y, masked_conv2d_gated(x, weight, bias, full, **OPTIONS)[1], rtol=1e-12, atol=1e-12)


def test_derivatives_of_the_operator_of_any_order_and_mode(through_the_operator):
    leaves = [t.requires_grad_() for t in tensors().values()]

    def call(*inputs):
        return masked_conv2d_gated(*inputs, **OPTIONS)

    torch.autograd.gradcheck(call, leaves, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(call, leaves, fast_mode=True)
    third = [t.detach()[..., :1, :1] if t.dim() == 4 else t.detach() for t in leaves]
    third = [t.requires_grad_() for t in third]

    def gradient(*inputs):
        return torch.autograd.grad(call(*inputs).square().sum(), inputs, create_graph=True)

    torch.autograd.gradgradcheck(gradient, third, fast_mode=True)


def test_torch_func_sees_through_the_operator(through_the_operator):
    inputs = tuple(tensors().values())
    directions = tuple(torch.randn_like(t) for t in inputs)

    def loss(*inputs):
        return masked_conv2d_gated(*inputs, **OPTIONS).square().sum()

    _, along = torch.func.jvp(loss, inputs, directions)
    gradients = torch.func.grad(loss, argnums=(0, 1, 2, 3))(*inputs)
    torch.testing.assert_close(along, sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)))
    each = torch.func.vmap(torch.func.grad(lambda x: loss(x[None], *inputs[1:3], inputs[3][:1])))(inputs[0])
    one = torch.func.grad(lambda x: loss(x[None], *inputs[1:3], inputs[3][:1]))(inputs[0][1])
    torch.testing.assert_close(each[1], one)


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("keep", [True, False])
def test_opcheck(layout, keep):
    inputs = [t.requires_grad_(keep) for t in tensors(torch.float32, layout).values()]
    torch.library.opcheck(schema.gated_op, (*inputs, "B", 2, [1, 1], keep))
    features, grad = (torch.randn(2, c, 2, 4) for c in (10, 5))
    torch.library.opcheck(schema.gate_backward_op, (grad, laid_out(features, "channels_last"), keep))


@pytest.mark.parametrize("layout", DENSE)
def test_a_compiled_step_equals_the_eager_one(layout, through_the_operator):
    leaves = [t.requires_grad_() for t in tensors(torch.float32, layout).values()]

    def call(*inputs):
        return masked_conv2d_gated(*inputs, **OPTIONS)

    eager, compiled = call(*leaves), torch.compile(call, fullgraph=True, backend="aot_eager")(*leaves)
    assert compiled.equal(eager)
    assert compiled.stride() == eager.stride()
    gradients = [torch.autograd.grad(y.square().sum(), leaves) for y in (eager, compiled)]
    assert all(a.equal(b) for a, b in zip(*gradients, strict=True))


def test_what_backward_wants_is_kept_when_it_is_wanted_and_not_else(through_the_operator, monkeypatch):
    kept = []
    forward = derivatives.gated
    monkeypatch.setattr(
        functional, "gated", lambda *inputs: kept.append(forward(*inputs)[1].numel()) or forward(*inputs)
    )
    inputs = tensors(torch.float32)
    masked_conv2d_gated(**inputs, **OPTIONS)
    masked_conv2d_gated(**inputs | {"bias": inputs["bias"].requires_grad_()}, **OPTIONS)
    with torch.no_grad():
        masked_conv2d_gated(**inputs, **OPTIONS)
    assert kept == [0, 2 * 10 * 2 * 4, 0]


@pytest.mark.parametrize("condition", [None, 3])
def test_the_layer_of_the_gated_pixelcnn_is_the_same_through_the_operator(condition, monkeypatch):
    torch.manual_seed(0)
    module = GatedMaskedConv2d(5, 5, 3, mask_type="B", channel_groups=3, condition_channels=condition).double()
    inputs = [torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    inputs += [] if condition is None else [torch.randn(2, condition, dtype=torch.float64)]
    results = []
    for fused in (False, True):
        monkeypatch.setattr(dispatch, "gate_is_fused", lambda x, fused=fused: fused)
        y = module(*inputs)
        wanted = [*inputs[:2], *module.parameters()]
        results.append([*y, *torch.autograd.grad(sum(t.square().sum() for t in y), wanted)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("error::UserWarning")  # such as that it cannot be traced
def test_the_sampler_reads_a_model_that_goes_through_the_operator(monkeypatch):
    torch.manual_seed(0)
    model = GatedPixelCNN(3, 7, 1, 4, num_classes=2, image_size=(3, 4))
    keywords = {"uniforms": torch.rand(2, 3, 3, 4), "condition": torch.tensor([0, 1])}
    expected = copy.deepcopy(model).sample(2, **keywords)
    monkeypatch.setattr(dispatch, "gate_is_fused", lambda x: True)
    calls = []
    forward = derivatives.gated
    monkeypatch.setattr(functional, "gated", lambda *inputs: calls.append(1) or forward(*inputs))
    assert model.sample(2, **keywords).equal(expected)
    assert calls


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"weight": torch.zeros(9, 3, 3, 3), "bias": None},
            ValueError,
            "weight: expected an even number of out_channels, .* got 9",
        ),
        ({"channel_groups": 4}, ValueError, r"channel_groups: expected at most min\(out_channels / 2, .* = 3; got 4"),
        ({"addend": torch.zeros(2, 5, 2, 4)}, ValueError, r"addend: expected .* \[2, 10, 2, 4\]; got \[2, 5, 2, 4\]"),
        ({"addend": torch.zeros(1, 2, 10, 2, 4)}, ValueError, "addend: expected a shape that broadcasts"),
        ({"addend": torch.zeros(10, 2, 4).half()}, TypeError, "addend: expected the dtype of x, torch.float32; got"),
        ({"addend": torch.zeros(10, 2, 4, device="meta")}, ValueError, "addend: expected the device of x, cpu; got"),
        ({"addend": 1.0}, TypeError, "addend: expected a torch.Tensor or None; got float"),
        ({"mask_type": "C"}, ValueError, "mask_type: expected 'A' or 'B'; got 'C'"),
        ({"dilation": 0}, ValueError, "dilation: expected one or two whole numbers"),
        ({"x": torch.zeros(2, 4, 2, 4)}, ValueError, "x: expected 3 channels, as weight has"),
    ],
)
def test_a_bad_argument_is_refused_with_its_name(changes, error, message):
    with pytest.raises(error, match=f"^{message}"):
        masked_conv2d_gated(**tensors(torch.float32) | OPTIONS | changes)
