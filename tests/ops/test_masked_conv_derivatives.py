"""First and higher derivatives of the masked convolution, backward and forward, eager and in torch.func."""

import itertools

import pytest
import torch
import torch.nn.functional as F
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
from torch import Tensor, func

from genkernels.ops import masked_conv2d
from genkernels.ops.masked_conv.mask import MaskSpec, mask_tensor

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = [
    {"mask_type": "A"},
    {"mask_type": "B", "activation": "relu"},
    {"mask_type": "A", "channel_groups": 2, "dilation": (2, 1)},
    {"mask_type": "B", "channel_groups": 3, "group_layout": "interleaved", "activation": "relu"},
]
KERNELS = [(3, 3), (1, 3), (3, 1), (1, 1)]


def option_name(options: dict) -> str:
    return "-".join(map(str, options.values()))


def inputs_for(kernel=(3, 3), dtype=torch.float64, seed=0) -> list[Tensor]:
    """x [2, 3, 3, 4], weight [4, 3, *kernel] and bias [4]; no result lies near the kink of the ReLU."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, 3, 3, 4), (4, 3, *kernel), (4,)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def ours(options: dict):
    return lambda x, weight, bias=None: masked_conv2d(x, weight, bias, **options)


def plain(options: dict):
    """The same in PyTorch's own operators, whose derivatives need no proof."""

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        outputs, inputs, *kernel = weight.shape
        groups, layout = options.get("channel_groups", 1), options.get("group_layout", "blocks")
        mask = mask_tensor(MaskSpec(outputs, inputs, tuple(kernel), options["mask_type"], groups, layout))
        dilation = options.get("dilation", (1, 1))
        padding = [k // 2 * d for k, d in zip(kernel, dilation, strict=True)]
        y = F.conv2d(x, weight * mask.to(weight.dtype), bias, padding=padding, dilation=dilation)
        return y.relu() if options.get("activation") else y

    return conv


# --- numerically ---


@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
def test_gradcheck_of_every_single_derivative(options):
    inputs = [t.requires_grad_() for t in inputs_for()]
    assert torch.autograd.gradcheck(ours(options), inputs, check_forward_ad=True)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck_backward_forward_and_batched(options, kernel, with_bias):
    inputs = [t.requires_grad_() for t in inputs_for(kernel)[: 3 if with_bias else 2]]
    assert torch.autograd.gradcheck(
        ours(options),
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        fast_mode=True,
    )


@pytest.mark.parametrize("kernel", KERNELS[:2], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
def test_gradgradcheck_backward_over_backward_and_forward_over_backward(options, kernel):
    inputs = [t.requires_grad_() for t in inputs_for(kernel)]
    assert torch.autograd.gradgradcheck(
        ours(options), inputs, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True
    )


@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
@pytest.mark.parametrize("needs", [n for n in itertools.product((True, False), repeat=3) if any(n)])
def test_gradcheck_and_gradgradcheck_when_only_some_inputs_need_gradients(needs, options):
    inputs = [t.requires_grad_(need) for t, need in zip(inputs_for((3, 3)), needs, strict=True)]
    assert torch.autograd.gradcheck(ours(options), inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(ours(options), inputs, fast_mode=True)


# --- against PyTorch's own operators ---


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=needs_native)])
@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
@pytest.mark.parametrize("used", [u for u in itertools.product((True, False), repeat=3) if any(u)])
def test_double_backward_through_any_of_the_gradients_is_that_of_pytorch(used, options, dtype):
    """As a gradient penalty does; the float32 kernels are held against float64."""
    exact = of_penalty(plain(options), inputs_for(), used)
    for got, expected in zip(of_penalty(ours(options), inputs_for(dtype=dtype), used), exact, strict=True):
        assert got.dtype == dtype
        size = float(expected.abs().max()) or 1.0
        assert_same(got.double() / size, expected / size, dtype)


def test_a_gradient_penalty_reaches_the_weight():
    x, weight, bias = (t.requires_grad_() for t in inputs_for(dtype=torch.float32))
    (grad_x,) = torch.autograd.grad(masked_conv2d(x, weight, bias, mask_type="B").pow(2).sum(), x, create_graph=True)
    grad_x.norm().sub(1).square().backward()
    assert weight.grad.abs().sum() > 0
    assert (weight.grad[..., 1, 2] == 0).all()


@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
def test_the_third_derivative_is_that_of_pytorch(options):
    inputs = inputs_for()[:2]
    for got, expected in zip(third(ours(options), inputs), third(plain(options), inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


# --- torch.func: every transform gives what it gives for PyTorch's own operators ---

ALL = (0, 1, 2)


def along(inputs) -> tuple[Tensor, ...]:
    """Tangents of all inputs, which depend on them."""
    return tuple(t.cos() for t in inputs)


def two(t: Tensor, dim: int = 0) -> Tensor:
    """A batch of different tensors, stacked along a new dimension."""
    return torch.stack([t, t.cos()], dim)


def norm_of_grad(f, argnums=ALL):
    return lambda *a: sum(g.pow(2).sum() for g in func.grad(scalar(f), argnums)(*a))


# name: (f -> a function of x, w and b)
TRANSFORMS = {
    "grad": lambda f: func.grad(scalar(f), ALL),
    "grad_and_value": lambda f: func.grad_and_value(scalar(f), ALL),
    "grad of grad": lambda f: func.grad(norm_of_grad(f), ALL),
    "vjp": lambda f: lambda *a: func.vjp(f, *a)[1](f(*a).cos()),
    "jvp": lambda f: lambda *a: func.jvp(f, a, along(a)),
    "jvp of x alone": lambda f: lambda x, w, b: func.jvp(lambda x: f(x, w, b), (x,), along([x])),
    "jvp of weight alone": lambda f: lambda x, w, b: func.jvp(lambda w: f(x, w, b), (w,), along([w])),
    "jvp of bias alone": lambda f: lambda x, w, b: func.jvp(lambda b: f(x, w, b), (b,), along([b])),
    "jvp of grad": lambda f: lambda *a: func.jvp(func.grad(scalar(f), ALL), a, along(a)),
    "grad of jvp": lambda f: func.grad(lambda *a: func.jvp(f, a, along(a))[1].pow(2).sum(), ALL),
    "grad of jvp of grad": lambda f: func.grad(lambda *a: func.jvp(norm_of_grad(f), a, along(a))[1], ALL),
    "linearize": lambda f: lambda *a: func.linearize(f, *a)[1](*along(a)),
    "jacrev": lambda f: func.jacrev(f, ALL),
    "jacfwd": lambda f: func.jacfwd(f, ALL),
    "hessian": lambda f: func.hessian(scalar(f), (0, 1)),
    "jacrev of jacrev": lambda f: func.jacrev(func.jacrev(scalar(f), 0), 1),
    "jacfwd of jacrev": lambda f: func.jacfwd(func.jacrev(scalar(f), 1), 0),
    "jacrev of jacfwd": lambda f: func.jacrev(func.jacfwd(scalar(f), 1), 0),
    "vmap over x": lambda f: lambda x, w, b: func.vmap(f, (0, None, None))(two(x), w, b),
    "vmap over x, last to last": lambda f: lambda x, w, b: func.vmap(f, (-1, None, None), -1)(two(x, -1), w, b),
    "vmap over single images": lambda f: lambda x, w, b: func.vmap(f, (0, None, None))(x, w, b),
    "vmap over weight": lambda f: lambda x, w, b: func.vmap(f, (None, 0, None))(x, two(w), b),
    "vmap over bias": lambda f: lambda x, w, b: func.vmap(f, (None, None, 1))(x, w, two(b, 1)),
    "vmap over all": lambda f: lambda x, w, b: func.vmap(f, (0, 1, 0))(two(x), two(w, 1), two(b)),
    "vmap of vmap": lambda f: (
        lambda x, w, b: func.vmap(func.vmap(f, (0, None, None)), (None, 0, 0))(two(x), two(w), two(b))
    ),
    "vmap of grad, per-sample gradients": lambda f: func.vmap(func.grad(scalar(f), ALL), (0, None, None)),
    "vmap of grad, an ensemble": lambda f: (
        lambda x, w, b: func.vmap(func.grad(scalar(f), ALL), (None, 0, 0))(x, two(w), two(b))
    ),
    "vmap of grad of grad": lambda f: func.vmap(func.grad(norm_of_grad(f), ALL), (0, None, None)),
    "vmap of jacrev": lambda f: func.vmap(func.jacrev(f, 0), (0, None, None)),
    "vmap of jvp": lambda f: func.vmap(lambda *a: func.jvp(f, a, along(a)), (0, None, None)),
    "jvp of vmap": lambda f: lambda *a: func.jvp(func.vmap(f, (0, None, None)), a, along(a)),
    "grad of vmap": lambda f: func.grad(scalar(func.vmap(f, (0, None, None))), ALL),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_give_what_they_give_for_pytorch(name, dtype):
    for options in OPTIONS[1:3]:
        assert_transform_agrees(TRANSFORMS[name], (ours(options), plain(options)), inputs_for(dtype=dtype))


NESTED = {
    "jvp of jvp": lambda f: lambda *a: func.jvp(lambda *b: func.jvp(f, b, along(b)), a, along(a)),
    "jacfwd of jacfwd": lambda f: func.jacfwd(func.jacfwd(scalar(f), 1), 0),
}


@pytest.mark.parametrize("name", NESTED)
def test_forward_mode_inside_forward_mode_is_refused_and_not_silently_wrong(name):
    """autograd.Function drops the inner tangent there: PyTorch would give a wrong second derivative."""
    with pytest.raises(NotImplementedError, match=r"masked_conv2d.*forward mode inside forward mode"):
        NESTED[name](ours(OPTIONS[1]))(*inputs_for())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", [w for w in itertools.product((True, False), repeat=3) if any(w)])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_mode_by_hand_is_that_of_pytorch(which, dtype, requires_grad):
    options, tangents = OPTIONS[3], inputs_for(dtype=dtype, seed=1)
    primals = [t.requires_grad_(requires_grad) for t in inputs_for(dtype=dtype)]
    results = (forward_mode(conv(options), primals, tangents, which) for conv in (ours, plain))
    for got, expected in zip(*results, strict=True):
        assert_same(got, expected, dtype)


def test_inference_mode_and_no_grad_give_the_same_result_without_a_graph():
    inputs = [t.requires_grad_() for t in inputs_for(dtype=torch.float32)]
    assert_no_graph_where_none_is_wanted(ours({"mask_type": "B"}), inputs)
