"""softmax_nll: convolution and cross-entropy in one, against float64 over a grid, and what else it promises."""

import pytest
import torch
import torch.nn.functional as F
from helpers.grids import (
    DTYPES,
    ISAS,
    assert_within_bound,
    check_cases_under,
    laid_out,
    name_of,
    nan_in_fresh_memory,
    needs_native,
    pairwise,
    with_gradients,
)
from torch import Tensor, func

from genkernels.nn import MaskedConv2d
from genkernels.ops import softmax_nll

ops = torch.ops.genkernels
AXES = {
    "dtype": DTYPES,
    "batch": (1, 3),
    # A tile, a block of rows that is cut, several blocks.
    "size": ((1, 1), (2, 3), (9, 14), (23, 20)),
    # Fewer than a register, whole panels, cut ones, several segments.
    "features": (1, 7, 16, 64, 70, 300),
    "levels": (2, 5, 16, 17, 64, 100, 256, 300),
    "colours": (1, 3),
    "bias": (True, False),
    "groups": (True, False),
    "layout": ("contiguous", "channels_last"),
}
CASES = pairwise(AXES)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, groups: int = 1) -> Tensor:
    """[N, C, H, W], by the operators that everyone uses; with groups, the weight masked as of type B."""
    colours, features = target.shape[1], weight.shape[1]
    levels = weight.shape[0] // colours
    if groups > 1:
        of_output = torch.arange(weight.shape[0]) // levels
        of_feature = torch.arange(features) * colours // features
        weight = weight * (of_feature[None] <= of_output[:, None])[:, :, None, None]
    logits = F.conv2d(x, weight, bias).unflatten(1, (colours, levels)).transpose(1, 2)
    return F.cross_entropy(logits, target.long(), reduction="none")


def tensors(case: dict) -> tuple[list[Tensor | None], Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(0)
    colours, levels, features = case["colours"], case["levels"], case["features"]
    x = laid_out(
        torch.randn(case["batch"], features, *case["size"], generator=generator).to(case["dtype"]), case["layout"]
    )
    weight = (torch.randn(colours * levels, features, 1, 1, generator=generator) * features**-0.5).to(case["dtype"])
    bias = torch.randn(colours * levels, generator=generator).to(case["dtype"]) if case["bias"] else None
    shape = (case["batch"], colours, *case["size"])
    target = torch.randint(0, levels, shape, generator=generator)
    return [x, weight, bias], target, torch.randn(shape, generator=generator), colours if case["groups"] else 1


def check(case: dict) -> None:
    inputs, target, grad, groups = tensors(case)
    with nan_in_fresh_memory():
        got = with_gradients(lambda x, w, b=None: softmax_nll(x, w, b, target, channel_groups=groups), inputs, grad)
    assert got[0].dtype == torch.float32
    assert_within_bound(
        ("nll", "x", "weight", "bias")[: len(got)],
        got,
        lambda *t: with_gradients(lambda x, w, b=None: plain(x, w, b, target, groups), t[:3], t[3]),
        [*inputs, grad],
    )


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_result_and_gradients_are_within_the_bound(case):
    check(case)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_is_within_the_bound(isa):
    check_cases_under(isa, "ops.test_softmax_nll")


@pytest.mark.parametrize("case", CASES[1::2], ids=name_of)
def test_a_sum_whose_gradients_the_forward_pass_finds_is_within_the_bound(case):
    inputs, target, grad, groups = tensors(case)
    scale = float(grad.flatten()[0])
    with nan_in_fresh_memory():
        got = with_gradients(
            lambda x, w, b=None: softmax_nll(x, w, b, target, channel_groups=groups, reduction="sum"),
            inputs, torch.tensor(scale),
        )  # fmt: skip
    assert_within_bound(
        ("total", "x", "weight", "bias")[: len(got)],
        got,
        lambda *t: with_gradients(
            lambda x, w, b=None: plain(x, w, b, target, groups).sum(), t, torch.tensor(scale).double()
        ),
        inputs,
    )


# --- derivatives ---


def small(dtype=torch.float64) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 2, 3), (8, 3, 1, 1), (8,)]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    return inputs, torch.randint(0, 4, (2, 2, 2, 3), generator=generator)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck_of_a_sum(weighted):
    inputs, target = small()
    level_weight = torch.tensor([1.0, 0.0, 2.5, 0.3], dtype=torch.float64) if weighted else None

    def function(*tensors):
        return softmax_nll(*tensors, target, level_weight=level_weight, reduction="mean")

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradcheck_backward_and_forward_mode_and_over_backward(groups):
    inputs, target = small()

    def function(*tensors):
        return softmax_nll(*tensors, target, channel_groups=groups)

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_second_derivatives_of_the_kernel_are_those_of_pytorch():
    inputs, target = small(torch.float32)

    def penalty(function):
        grads = torch.autograd.grad(function(*inputs).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)

    for reduction in ("none", "sum"):
        for got, expected in zip(
            penalty(lambda *t, r=reduction: softmax_nll(*t, target, reduction=r)),
            penalty(lambda *t: plain(*t, target)),
            strict=True,
        ):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_per_sample_gradients_are_those_of_each_sample(reduction):
    inputs, target = small(torch.float32)

    def loss(x, t, weight, bias):
        return softmax_nll(x[None], weight, bias, t[None], reduction=reduction).sum()

    got = func.vmap(func.grad(loss, argnums=2), in_dims=(0, 0, None, None))(inputs[0], target, *inputs[1:])
    for i in range(2):
        expected = func.grad(loss, argnums=2)(inputs[0][i], target[i], *inputs[1:])
        torch.testing.assert_close(got[i], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    (x, weight, bias), target = small(dtype)
    rows, named = x.permute(0, 2, 3, 1).reshape(-1, 3).detach(), target.permute(0, 2, 3, 1).reshape(-1, 2)
    tensors = (rows.requires_grad_(), weight.flatten(1).detach().requires_grad_(), bias, named)
    torch.library.opcheck(ops.softmax_nll.default, (*tensors, [3, 3]))
    nll, log_sum_exp = ops.softmax_nll(*tensors, [2, 3])
    torch.library.opcheck(ops.softmax_nll_total.default, (*tensors, None, [2, 3], [True] * 3))
    counts = torch.rand(nll.shape, dtype=nll.dtype)
    torch.library.opcheck(ops.softmax_nll_total.default, (*tensors, counts, [3, 3], [True, False, True]))
    backward = (torch.randn_like(nll), *(t.detach() for t in tensors), log_sum_exp.detach(), [2, 3], [True] * 3)
    torch.library.opcheck(ops.softmax_nll_backward.default, backward)


def test_each_gradient_alone_is_what_it_is_among_all():
    inputs, target = small(torch.float32)
    everything = torch.autograd.grad(softmax_nll(*inputs, target).sum(), inputs)
    for i, expected in enumerate(everything):
        only = [t.detach().requires_grad_(i == k) for k, t in enumerate(inputs)]
        (got,) = torch.autograd.grad(softmax_nll(*only, target).sum(), only[i])
        assert got.equal(expected)


# --- what it stands in for ---


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions_and_weights_of_levels_are_those_of_cross_entropy(reduction, weighted):
    (x, weight, bias), target = small(torch.float32)
    level_weight = torch.tensor([1.0, 0.0, 2.5, 0.3]) if weighted else None
    logits = F.conv2d(x, weight, bias).unflatten(1, (2, 4)).transpose(1, 2)
    expected = F.cross_entropy(logits, target, weight=level_weight, reduction=reduction)
    got = softmax_nll(x, weight, bias, target, level_weight=level_weight, reduction=reduction)
    torch.testing.assert_close(got, expected)
    for a, b in zip(*(torch.autograd.grad(y.sum(), (x, weight, bias)) for y in (got, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("features", [3, 7, 8, 24])
def test_groups_are_those_of_a_masked_convolution(features):
    torch.manual_seed(0)
    layer = MaskedConv2d(features, 3 * 4, 1, mask_type="B", channel_groups=3)
    x, target = torch.randn(2, features, 3, 4, requires_grad=True), torch.randint(0, 4, (2, 3, 3, 4))
    expected = F.cross_entropy(layer(x).unflatten(1, (3, 4)).transpose(1, 2), target, reduction="none")
    got = softmax_nll(x, layer.weight, layer.bias, target, channel_groups=3)
    torch.testing.assert_close(got, expected)
    leaves = (x, layer.weight, layer.bias)
    for a, b in zip(*(torch.autograd.grad(y.sum(), leaves) for y in (got, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_reaches_its_pixel_alone_as_in_pytorch(value):
    (x, weight, bias), target = small(torch.float32)
    x = x.detach().clone()
    x[1, 2, 0, 1] = value
    torch.testing.assert_close(
        softmax_nll(x, weight, bias, target), plain(x, weight, bias, target), equal_nan=True, rtol=1e-4, atol=1e-5
    )


def test_levels_without_probability_and_huge_logits_are_as_in_pytorch():
    x, weight = torch.ones(1, 1, 1, 4), torch.zeros(5, 1, 1, 1)
    bias = torch.tensor([0.0, -float("inf"), 1e30, -1e30, 80.0])
    target = torch.tensor([[[[0, 2, 3, 4]]]])
    torch.testing.assert_close(softmax_nll(x, weight, bias, target), plain(x, weight, bias, target))


def test_the_logits_are_never_kept():
    (x, weight, bias), target = small(torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        softmax_nll(x, weight, bias, target)
    assert kept and max(kept) <= max(x.numel(), weight.numel()) < 8 * 12


# --- where it runs ---


@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int32, torch.int64])
def test_targets_of_any_integer_dtype_are_the_same(target_dtype):
    inputs, target = small(torch.float32)
    assert softmax_nll(*inputs, target.to(target_dtype)).equal(softmax_nll(*inputs, target))


def test_compiled_it_is_what_it_is_eager():
    inputs, target = small(torch.float32)

    def function(*tensors):
        return softmax_nll(*tensors, target, reduction="mean")

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert compiled(*inputs).equal(function(*inputs))
    for got, expected in zip(
        torch.autograd.grad(compiled(*inputs), inputs), torch.autograd.grad(function(*inputs), inputs), strict=True
    ):
        assert got.equal(expected)


@pytest.mark.parametrize("wrong", [4, -1, 70000])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_a_target_that_is_no_level_is_refused_in_a_compiled_program_too(wrong, reduction):
    inputs, target = small(torch.float32)
    compiled = torch.compile(
        lambda t: softmax_nll(*inputs, t, reduction=reduction), fullgraph=True, backend="aot_eager"
    )
    compiled(target)
    target[0, 1, 0, 2] = wrong
    with pytest.raises(ValueError, match=r"target: expected levels 0 \.\. 3; got"):
        compiled(target)


def test_under_autocast_sums_stay_float32():
    inputs, target = small(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert softmax_nll(*inputs, target).equal(softmax_nll(*inputs, target).float())
        features = F.conv2d(inputs[0], torch.eye(3)[:, :, None, None])
        assert features.dtype == torch.bfloat16
        got = softmax_nll(features, *inputs[1:], target)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, plain(features.float(), *inputs[1:], target))


@needs_native
def test_results_do_not_change_from_call_to_call_on_any_number_of_threads(threads):
    x, weight = torch.randn(2, 20, 33, 35), torch.randn(3 * 50, 20, 1, 1)
    target = torch.randint(0, 50, (2, 3, 33, 35))
    for count in (1, 2, 3):
        threads(count)
        runs = [
            with_gradients(lambda x, w: softmax_nll(x, w, None, target), [x, weight], torch.ones(2, 3, 33, 35))
            for _ in range(2)
        ]
        assert all(a.equal(b) for a, b in zip(*runs, strict=True))


def test_an_empty_batch_gives_an_empty_result_and_zero_gradients():
    x, weight, bias = torch.zeros(0, 3, 4, 5, requires_grad=True), *small(torch.float32)[0][1:]
    y = softmax_nll(x, weight, bias, torch.zeros(0, 2, 4, 5, dtype=torch.uint8))
    assert y.shape == (0, 2, 4, 5)
    for got, like in zip(torch.autograd.grad(y.sum(), (x, weight, bias)), (x, weight, bias), strict=True):
        assert got.equal(torch.zeros_like(like))


WRONG = {
    "x: no tensor": ({"x": 3}, TypeError, "x: expected a torch.Tensor; got int"),
    "x: rank": ({"x": torch.zeros(2, 3, 2)}, ValueError, r"x: expected floating-point \[N, K, H, W\]; got torch"),
    "x: integers": ({"x": torch.zeros(2, 3, 2, 3).int()}, ValueError, "x: expected floating-point"),
    "target: size": ({"target": torch.zeros(2, 2, 2, 4).int()}, ValueError, r"target: expected \[2, 'C', 2, 3\]; got"),
    "target: dtype": ({"target": torch.zeros(2, 2, 2, 3)}, TypeError, "target: expected an integer dtype"),
    "target: too large": (
        {"target": torch.full((2, 2, 2, 3), 4)}, ValueError, r"target: expected levels 0 \.\. 3; got 4 \.\. 4",
    ),
    "target: negative": ({"target": -torch.ones(2, 2, 2, 3).int()}, ValueError, r"got -1 \.\. -1"),
    "weight: features": (
        {"weight": torch.zeros(8, 4, 1, 1)}, ValueError, r"weight: expected \[2 \* L, 3\] or .*; got shape \[8, 4",
    ),
    "weight: kernel": ({"weight": torch.zeros(8, 3, 3, 3)}, ValueError, "weight: expected"),
    "weight: colours": ({"weight": torch.zeros(7, 3, 1, 1)}, ValueError, "weight: expected"),
    "bias": ({"bias": torch.zeros(7)}, ValueError, r"bias: expected \[8\]; got shape \[7\]"),
    "level_weight": ({"level_weight": torch.zeros(5)}, ValueError, r"level_weight: expected \[4\]; got shape \[5\]"),
    "groups": ({"channel_groups": 3}, ValueError, "channel_groups: expected 1 or 2, the colours of target; got 3"),
    "reduction": ({"reduction": "max"}, ValueError, "reduction: expected one of 'none', 'sum', 'mean'; got 'max'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named_with_what_was_expected(name):
    (x, weight, bias), target = small(torch.float32)
    changed, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        softmax_nll(**({"x": x, "weight": weight, "bias": bias, "target": target} | changed))
