"""First and higher derivatives of convolution + batch norm + activation, backward and forward, against PyTorch's."""

import dataclasses

import pytest
import torch
from helpers.derivatives import assert_transform_agrees, third
from torch import Tensor, func, nn

from genkernels.nn import ConvBnAct2d
from genkernels.ops import conv2d_bn_act, conv_transpose2d_bn_act
from ops.test_conv_bn_act_grid import Case, plain

pytestmark = pytest.mark.usefixtures("one_thread")

DOWN, UP = False, True
CASES = [
    Case(transposed=UP, activation="relu", norm="training", bias=False),
    Case(transposed=DOWN, activation="leaky_relu", norm="training"),
    Case(transposed=UP, activation="tanh", norm="none", kernel=(3, 2), steps=((2, 1), (1, 0), (1, 0))),
    Case(transposed=DOWN, activation="sigmoid", norm="none", kernel=(3, 3), steps=((1, 2), (0, 1), (0, 0))),
    Case(transposed=DOWN, activation="leaky_relu", norm="none", bias=False),
    Case(transposed=UP, activation=None, norm="evaluation"),
    Case(transposed=DOWN, activation="tanh", norm="evaluation", bias=False),
    Case(transposed=DOWN, activation="sigmoid", norm="training", bias=False),
]
CASES = [dataclasses.replace(case, dtype=torch.float64, size=(3, 4), channels=(2, 3)) for case in CASES]


def names_of(case: Case) -> list[str]:
    names = ["x", "weight", *(["bias"] if case.bias else [])]
    return names if case.norm == "none" else [*names, "bn_weight", "bn_bias"]


def inputs_for(case: Case, dtype=torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = case.channels
    pair = (inputs, outputs) if case.transposed else (outputs, inputs)
    shapes = {"x": (2, inputs, *case.size), "weight": (*pair, *case.kernel)}
    return [torch.randn(shapes.get(n, (outputs,)), generator=generator, dtype=torch.float64).to(dtype)
            for n in names_of(case)]  # fmt: skip


def running_for(case: Case, dtype=torch.float64) -> dict[str, Tensor]:
    if case.norm == "none":
        return {}
    outputs = case.channels[1]
    return {"running_mean": torch.linspace(-1, 1, outputs, dtype=dtype),
            "running_var": torch.linspace(0.5, 2, outputs, dtype=dtype)}  # fmt: skip


def ours(case: Case):
    function = conv_transpose2d_bn_act if case.transposed else conv2d_bn_act

    def call(*inputs: Tensor) -> Tensor:
        given = dict(zip(names_of(case), inputs, strict=True))
        # The update of running statistics is no part of a derivative, and forbidden under vmap.
        running = running_for(case, inputs[0].dtype) if case.norm == "evaluation" else {}
        return function(
            **given, **running, **case.options(), batch_norm=case.norm != "none", training=case.norm == "training",
            activation=case.activation, negative_slope=0.2,
        )  # fmt: skip

    return call


def theirs(case: Case):
    def call(*inputs: Tensor) -> Tensor:
        running = running_for(case) if case.norm == "evaluation" else {"running_mean": None, "running_var": None}
        return plain(case, dict(zip(names_of(case), inputs, strict=True)), running)

    return call


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck_backward_and_forward_mode(case):
    inputs = [t.requires_grad_() for t in inputs_for(case)]
    assert torch.autograd.gradcheck(ours(case), inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradgradcheck_backward_over_backward(case):
    inputs = [t.requires_grad_() for t in inputs_for(case)]
    assert torch.autograd.gradgradcheck(ours(case), inputs, check_fwd_over_rev=case.norm == "none", fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gradient_penalty_is_that_of_pytorch(case, dtype):
    """Through every gradient, each alone; the float32 kernels are held against float64."""

    def penalty(function, inputs, which):
        inputs = [t.requires_grad_() for t in inputs]
        gradients = torch.autograd.grad(function(*inputs).pow(2).sum(), inputs, create_graph=True)
        total = gradients[which].square().sum()
        return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)

    close = 1e-9 if dtype == torch.float64 else 2e-4
    for which, name in enumerate(names_of(case)):
        if name == "bias" and case.norm == "training":
            continue  # zero
        got, expected = (
            penalty(ours(case), inputs_for(case, dtype), which),
            penalty(theirs(case), inputs_for(case), which),
        )
        for one, other in zip(got, expected, strict=True):
            assert one.dtype == dtype
            size = float(max(t.abs().max() for t in expected)) or 1.0
            torch.testing.assert_close(one.double() / size, other / size, rtol=0, atol=close)


# PyTorch's own third derivative of a transposed convolution fails with output padding.
@pytest.mark.parametrize("case", [dataclasses.replace(CASES[2], steps=((2, 1), (1, 0), (0, 0))), *CASES[3:5]], ids=str)
def test_third_derivatives_without_batch_norm_are_those_of_pytorch(case):
    x, weight, *rest = inputs_for(case)
    results = (third(lambda x, w, f=f: f(x, w, *rest), (x, weight)) for f in (ours(case), theirs(case)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=0)


TRANSFORMS = {
    "grad": lambda f, n: func.grad(lambda *a: f(*a).pow(2).sum(), tuple(range(n))),
    "jvp": lambda f, n: lambda *a: func.jvp(f, a, tuple(t.cos() for t in a)),
    "jvp of grad": lambda f, n: (
        lambda *a: func.jvp(func.grad(lambda *b: f(*b).pow(2).sum(), tuple(range(n))), a, tuple(t.cos() for t in a))
    ),
    "vmap over x": lambda f, n: lambda x, *a: func.vmap(f, (0, *[None] * (n - 1)))(torch.stack([x, x.cos()]), *a),
    "vmap of grad": lambda f, n: (
        lambda x, *a: func.vmap(func.grad(lambda *b: f(*b).pow(2).sum(), 1), (0, *[None] * (n - 1)))(
            torch.stack([x, x.cos()]), *a
        )
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_transforms_give_what_they_give_for_pytorch(name, case):
    inputs = inputs_for(case)
    assert_transform_agrees(lambda f: TRANSFORMS[name](f, len(inputs)), (ours(case), theirs(case)), inputs)


def test_wgan_gp_on_a_critic_of_our_layers_is_that_of_torch_nn():
    """Gulrajani et al. 2017: the norm of the critic's gradient at its input is driven to 1."""
    torch.manual_seed(0)
    options = {"kernel_size": 4, "stride": 2, "padding": 1}
    block = {**options, "batch_norm": False, "activation": "leaky_relu", "negative_slope": 0.2}
    critic = nn.Sequential(ConvBnAct2d(3, 16, **block), ConvBnAct2d(16, 24, **block), nn.Conv2d(24, 1, 4))
    plain_critic = nn.Sequential(
        nn.Conv2d(3, 16, **options),
        nn.LeakyReLU(0.2),
        nn.Conv2d(16, 24, **options),
        nn.LeakyReLU(0.2),
        nn.Conv2d(24, 1, 4),
    )
    for own, other in zip(plain_critic.parameters(), critic.parameters(), strict=True):
        own.data.copy_(other.data)
    images = torch.randn(4, 3, 16, 16)
    results = []
    for model in (critic, plain_critic):
        x = images.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        grad.flatten(1).norm(dim=1).sub(1).square().mean().backward()
        # A bias that the gradient at the input does not depend on may have a gradient of zero or none.
        results.append([torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
    assert results[0][0].abs().sum() > 0
