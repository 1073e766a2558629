"""``genkernels.accelerate`` on masked convolutions whose weight is computed: weight norm and spectral norm."""

import copy
import io

import pytest
import torch
from helpers import public_styles as styles
from helpers.accelerated import assert_compiles, assert_same, pair, reloaded, step
from torch import nn
from torch.nn.utils import parametrize, prune

import genkernels
from genkernels.ops.conv_bn_act.heuristics import always_kernel

pytestmark = pytest.mark.usefixtures("seeded")

X = torch.randn(2, 4, 8, 9, generator=torch.Generator().manual_seed(1))
NORMS = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "old weight norm": nn.utils.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "old spectral norm": nn.utils.spectral_norm,
}
LAYERS = {
    "mask": lambda: styles.MultipliesItsWeight("B", 4, 6, 3, padding=1),
    "rows": lambda: styles.KeepsRows("B", 4, 6, 5, padding=2),
}


def pair_of(norm, layer="mask"):
    """A layer with a norm and its accelerated twin (deepcopy refuses some)."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(NORMS[norm](LAYERS[layer]()))
    report = genkernels.accelerate(made[1])
    assert_same(made[1].state_dict(), made[0].state_dict())
    assert len(report.entries) == len(report.swapped) == 1, str(report)
    return made


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_around_a_masked_convolution(norm, layer, monkeypatch):
    plain, fast = pair_of(norm, layer)
    for mode in (True, True, False):
        assert_same(step(fast.train(mode), X), step(plain.train(mode), X))
    calls = []
    plan = type(fast._genkernels_plan)
    run = plan.run
    monkeypatch.setattr(plan, "run", lambda *args: calls.append(1) or run(*args))
    step(fast, X)
    assert calls
    assert fast.state_dict().keys() == plain.state_dict().keys()
    genkernels.restore(fast)
    assert_same(step(fast, X), step(plain, X))
    assert len(calls) == 1
    assert [type(a).__name__ for a in fast.modules()] == [type(a).__name__ for a in plain.modules()]
    assert type(fast).__bases__ == type(plain).__bases__


@pytest.mark.parametrize("norm", NORMS)
def test_the_weight_is_computed_once_a_call(norm, monkeypatch):
    _, fast = pair_of(norm)
    calls = []
    if norm.startswith("old"):
        (hook,) = fast._forward_pre_hooks.values()
        own = hook.compute_weight
        monkeypatch.setattr(hook, "compute_weight", lambda *a, **k: calls.append(1) or own(*a, **k))

    else:
        fast.parametrizations.weight[0].register_forward_hook(lambda *_: calls.append(1))
    step(fast, X)
    assert calls == [1]


@pytest.mark.parametrize("norm", ["weight norm", "spectral norm"])
def test_copies_are_restored_each_by_itself(norm):
    plain, fast = pair_of(norm)
    other = copy.deepcopy(fast)
    genkernels.restore(fast)
    assert not hasattr(fast, "_genkernels_plan")
    assert other._genkernels_plan is not None
    third = copy.deepcopy(other)
    parametrize.remove_parametrizations(fast, "weight")
    expected = step(copy.deepcopy(plain), X)
    for model in (other, third):
        assert_same(step(model, X), expected)
        genkernels.restore(model)
    assert type(fast) is styles.MultipliesItsWeight
    assert parametrize.is_parametrized(other)


@pytest.mark.parametrize("norm", ["weight norm", "spectral norm"])
def test_it_pickles_no_more_than_before_and_checkpoints_go_both_ways(norm):
    plain, fast = pair_of(norm)
    for model in (plain, fast):
        with pytest.raises(RuntimeError, match="only supported through state_dict"):
            torch.save(model, io.BytesIO())
    torch.manual_seed(3)
    other = NORMS[norm](LAYERS["mask"]())
    fast.load_state_dict(other.state_dict())
    plain.load_state_dict(fast.state_dict())
    expected = other.eval()(X)
    assert_same({"y": fast.eval()(X)}, {"y": expected})
    assert_same({"y": plain.eval()(X)}, {"y": expected})


def test_old_weight_norm_pickles_as_before():
    plain, fast = pair_of("old weight norm")
    loaded = reloaded(fast)
    assert type(loaded) is type(fast)
    assert_same(step(loaded, X), step(plain, X))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("norm", ["weight norm", "old weight norm", "spectral norm"])
def test_a_norm_taken_away_afterwards_counts(norm, layer):
    plain, fast = pair_of(norm, layer)
    step(fast, X), step(plain, X)
    for model in (plain, fast):
        if norm == "old weight norm":
            nn.utils.remove_weight_norm(model)
        else:
            parametrize.remove_parametrizations(model.eval(), "weight")
    assert_same(step(fast, X), step(plain, X))
    genkernels.restore(fast)
    assert type(fast) is type(plain) is type(LAYERS[layer]())


@pytest.mark.parametrize("style", ["data", "broadcast"])
def test_a_parametrization_registered_since_counts_and_restore_leaves_it(style):
    plain, fast, _ = pair(styles.MASKED[style])
    step(plain, X), step(fast, X)
    for layer in (plain, fast):
        nn.utils.parametrizations.weight_norm(layer)
    assert_same(step(fast, X), step(plain, X))
    genkernels.restore(fast)
    assert_same(step(fast, X), step(plain, X))
    nn.utils.parametrize.remove_parametrizations(fast, "weight")
    assert type(fast) is type(styles.MASKED[style]())


def test_a_mask_changed_after_the_swap_counts():
    plain, fast = pair_of("weight norm")
    for model in (plain, fast):
        model.visible[:, :, 0] = False
    assert_same(step(fast, X), step(plain, X))


def test_an_optimiser_trains_the_norm_as_before():
    losses = []
    for model in pair_of("weight norm"):
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        losses.append([])
        for _ in range(5):
            optimiser.zero_grad()
            loss = (model(X) - 1).square().mean()
            loss.backward()
            optimiser.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("norm", ["weight norm", "spectral norm"])
def test_it_compiles_in_one_graph_with_its_backward(norm, layer):
    plain, fast = pair_of(norm, layer)
    for model in (plain, fast):
        model.eval()
    assert_compiles(fast, plain, X)
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)


class Wraps(styles.Wrapper):
    """The convolution inside has the norm; its weight is read, and it is never called."""

    def __init__(self, norm):
        super().__init__("B", 4, 6, 3)
        NORMS[norm](self.conv)


@pytest.mark.parametrize("norm", ["weight norm", "spectral norm"])
def test_a_norm_on_the_convolution_inside(norm):
    plain = Wraps(norm)
    fast = copy.deepcopy(plain)
    (entry,) = genkernels.accelerate(fast).entries
    assert entry.swapped == "masked_conv2d"
    assert_same(step(fast, X), step(plain, X))
    other = copy.deepcopy(fast)
    genkernels.restore(fast)
    assert type(fast) is Wraps
    assert_same(step(other, X), step(plain, X))


def test_in_a_sequential_it_has_one_line():
    model = nn.Sequential(NORMS["weight norm"](LAYERS["mask"]()), nn.ReLU(), nn.Conv2d(6, 4, 1))
    plain = copy.deepcopy(model)
    (entry,) = [entry for entry in genkernels.accelerate(model).entries if entry.name == "0"]
    assert entry.swapped == "masked_conv2d"
    with always_kernel():
        torch.testing.assert_close(model(X), plain(X), rtol=1e-4, atol=1e-4)


class Doubles(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_parametrization_of_ones_own():
    plain = LAYERS["mask"]()
    parametrize.register_parametrization(plain, "weight", Doubles())
    fast = copy.deepcopy(plain)
    (entry,) = genkernels.accelerate(fast).entries
    assert entry.swapped == "masked_conv2d"
    assert_same(step(fast, X), step(plain, X))


def of_the_bias():
    layer = LAYERS["mask"]()
    parametrize.register_parametrization(layer, "bias", Doubles())
    return layer


def pruned():
    layer = LAYERS["mask"]()
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize("make, reason", [
    (of_the_bias, "a parametrization computes its weight"),
    (pruned, "spectral norm or pruning computes its weight"),
    (lambda: Wraps("old weight norm"), "hooks on the module inside"),
    (lambda: NORMS["weight norm"](styles.KeepsRows("B", 4, 6, 3, 2, 1)), "stride is (2, 2)"),
    (lambda: NORMS["spectral norm"](nn.Conv2d(4, 6, 3)), "a parametrization computes its weight"),
])  # fmt: skip
def test_what_is_left_and_why(make, reason):
    (entry,) = genkernels.accelerate(make()).entries
    assert entry.swapped is None
    assert reason in entry.detail
