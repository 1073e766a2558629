"""``genkernels.accelerate`` on masks that keep a rectangle of the kernel: a dense convolution of the live taps."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import public_styles as styles
from helpers.accelerated import assert_compiles, assert_same, pair, reloaded, step
from torch import nn

import genkernels
from genkernels.acceleration import masked
from genkernels.ops.conv_bn_act.heuristics import always_kernel

pytestmark = pytest.mark.usefixtures("seeded")

X = torch.randn(2, 4, 8, 9, generator=torch.Generator().manual_seed(1))


def kernels_of(monkeypatch):
    """The kernel sizes of the convolutions that run from now on."""
    seen, conv2d = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, w, *a, **k: seen.append(tuple(w.shape[2:])) or conv2d(x, w, *a, **k))
    return seen


@pytest.mark.parametrize("style", styles.RECTANGLES)
def test_only_the_live_taps_run(style, monkeypatch):
    make, detail = styles.RECTANGLES[style]
    plain, fast, report = pair(make)
    assert report.swapped[0].swapped == "conv2d"
    assert report.swapped[0].detail == f"{detail}: a dense convolution of these"
    seen = kernels_of(monkeypatch)
    for shape in (X.shape, (1, 4, 2, 3), (2, 4, 1, 1), (4, 5, 6)):
        x = torch.randn(shape)
        got, expected = step(fast, x), step(plain, x)
        assert_same(got, expected, {"weight": plain.mask} if "writes" in style else {})
        assert got["y"].shape == expected["y"].shape
    with always_kernel():
        seen.clear()
        fast(X)
    assert seen == [tuple(int(size) for size in detail.split(" ")[-1].split("x"))]


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("size", [4, 64])
def test_masked_taps_get_a_gradient_of_exactly_zero(size, writes):
    plain, fast, _ = pair(lambda: styles.KeepsRows("B", 8, 16, 5, padding=2, writes=writes))
    for model in (plain, fast):
        x = torch.randn(2, 8, size, size, generator=torch.Generator().manual_seed(0))
        model(x).square().sum().backward()
    assert not fast.weight.grad[plain.mask == 0].any()
    torch.testing.assert_close(fast.weight.grad, plain.weight.grad * plain.mask, rtol=1e-3, atol=1e-3)
    assert torch.equal(fast.weight, plain.weight)


def test_a_first_call_in_inference_mode_is_no_obstacle_to_training():
    _, fast, _ = pair(lambda: styles.KeepsRows("B", 4, 6, 3, padding=1, writes=True))
    masked.rectangle.cache_clear()  # as in a process that has loaded the layer
    with torch.inference_mode():
        fast(torch.randn(8, 4, 256, 256))
    fast(X).square().sum().backward()
    assert not fast.weight.grad[fast.mask == 0].any()


def test_small_calls_are_left_to_the_layer_itself(monkeypatch):
    _, fast, _ = pair(lambda: styles.KeepsRows("B", 4, 6, 3, padding=1))
    seen = kernels_of(monkeypatch)
    fast(X), fast(torch.randn(8, 4, 256, 256))
    assert seen == [(3, 3), (2, 3)]


@pytest.mark.parametrize("change", ["channels_last", "autocast", "double", "bfloat16"])
@pytest.mark.parametrize("style", ["A", "B", "the middle"])
def test_layouts_and_dtypes(style, change):
    plain, fast, _ = pair(styles.RECTANGLES[style][0])
    x = X
    if change == "channels_last":
        plain, fast, x = (t.to(memory_format=torch.channels_last) for t in (plain, fast, X))
    elif change in ("double", "bfloat16"):
        plain, fast, x = (t.to(getattr(torch, change)) for t in (plain, fast, X))
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"), always_kernel():
        got, expected = fast(x), plain(x)
    assert got.dtype == expected.dtype
    assert got.stride() == expected.stride()
    tolerance = 0.1 if change in ("autocast", "bfloat16") else 1e-4
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def hide(mask):
    mask[:, :, 0] = 0


MASK_CHANGES = {
    "in place": lambda layer: hide(layer.mask),
    "through .data": lambda layer: hide(layer.mask.data),
    "replaced": lambda layer: setattr(layer, "mask", torch.ones_like(layer.mask)),
    "loaded": lambda layer: layer.load_state_dict({**layer.state_dict(), "mask": torch.ones(6, 4, 3, 3)}),
}


@pytest.mark.parametrize("change", MASK_CHANGES)
def test_a_mask_changed_after_the_swap_counts(change):
    plain, fast, _ = pair(lambda: styles.KeepsRows("B", 4, 6, 3, padding=1))
    step(fast, X)
    for model in (plain, fast):
        MASK_CHANGES[change](model)
    assert_same(step(fast, X), step(plain, X))
    assert_same({"y": fast(X)}, {"y": plain(X)})


def test_a_hook_made_afterwards_sees_its_call():
    _, fast, _ = pair(lambda: nn.Sequential(styles.CroppedRows(4, 6, 5)))
    seen = []
    fast[0].register_forward_hook(lambda *_: seen.append("layer"))
    step(fast, X)
    assert seen == ["layer"]


def model():
    return nn.Sequential(
        styles.KeepsRows("A", 4, 6, 3, padding=1, writes=True), nn.ReLU(), styles.KeepsRows("B", 6, 4, 5, padding=2)
    )


def test_deepcopy_and_pickle_keep_the_swap_and_restore_takes_it_back():
    plain, fast, _ = pair(model, swapped=2)
    expected = step(plain, X)
    for copied in (copy.deepcopy(fast), reloaded(fast)):
        assert [type(a) for a in copied.modules()] == [type(a) for a in fast.modules()]
        assert_same(step(copied, X), expected, {"0.weight": plain[0].mask})
        genkernels.restore(copied)
        assert [type(a) for a in copied.modules()] == [type(a) for a in plain.modules()]
        assert_same(step(copied, X), expected)
        assert not [name for module in copied.modules() for name in module.__dict__ if "genkernels" in name]


def test_it_compiles_in_one_graph_with_its_backward():
    plain, fast, _ = pair(model, swapped=2)
    assert_compiles(fast, plain, X)
    for index in (0, 2):
        got, own = fast[index].weight.grad, plain[index].weight.grad
        torch.testing.assert_close(got, own * plain[index].mask, rtol=1e-3, atol=1e-3)


def test_it_is_sampled_as_it_was():
    def gated():
        return nn.Sequential(
            styles.KeepsRows("A", 1, 4, 3, padding=1), nn.ReLU(), styles.KeepsRows("B", 4, 4, 5, padding=2), nn.ReLU(),
            nn.Conv2d(4, 3, 1),
        ).eval()  # fmt: skip

    plain, fast, _ = pair(gated, swapped=2)
    uniforms = torch.rand(2, 1, 3, 4, dtype=torch.float64)
    with always_kernel():
        samplers = [genkernels.fast_sampler(model, levels=3, in_channels=1) for model in (plain, fast)]
        assert torch.equal(*(sampler.sample(2, (3, 4), uniforms=uniforms) for sampler in samplers))


def random_mask(layer):
    layer.mask.copy_(torch.rand(layer.mask.shape, generator=torch.Generator().manual_seed(0)) > 0.5)


def holed(layer):
    layer.mask[:, :, 0, 1] = 0


def holed_above(layer):
    layer.mask[:, :, 1] = 0
    holed(layer)


def of_one_channel(layer):
    layer.mask[2] = 1


def whole(layer):
    layer.mask[:] = 1


@pytest.mark.parametrize("change, options, reason", [
    (random_mask, {}, "not causal"),
    (holed, {}, "not causal"),
    (holed_above, {}, "none that the kernel has"),
    (of_one_channel, {}, "not causal"),
    (whole, {}, "nothing to skip"),
    (None, {"stride": 2}, "stride is (2, 2)"),
    (None, {"groups": 2}, "groups is 2"),
    (None, {"padding_mode": "reflect"}, "padding_mode is 'reflect'"),
])  # fmt: skip
def test_what_is_no_rectangle_is_left_with_the_reason(change, options, reason):
    layer = styles.KeepsRows("B", 4, 6, 3, padding=1, **options)
    if change is not None:
        change(layer)
    (entry,) = genkernels.accelerate(layer).entries
    assert entry.swapped is None
    assert reason in entry.detail
