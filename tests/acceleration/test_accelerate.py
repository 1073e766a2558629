"""``genkernels.accelerate``: what it swaps, and that nothing else about a model changes."""

import copy
import io
import os

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import public_styles as styles
from helpers.accelerated import assert_same, pair, step
from torch import nn

import genkernels
from genkernels.ops.conv_bn_act.heuristics import always_kernel

pytestmark = pytest.mark.usefixtures("seeded")


# --- what is swapped -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", styles.MASKED)
def test_masked_convolutions_of_every_style(style, monkeypatch):
    plain, fast, report = pair(styles.MASKED[style])
    assert report.swapped[0].swapped == "masked_conv2d"
    x = torch.randn(2, 6 if style in ("blocks", "interleaved") else 4, 7, 9)
    # Where the zeros are written into the weight, the original leaves a gradient for the masked taps.
    assert_same(step(fast, x), step(plain, x), {"weight": plain.mask} if style == "data" else {})
    calls = []
    masked_conv2d = genkernels.ops.masked_conv2d
    monkeypatch.setattr(genkernels.ops, "masked_conv2d", lambda *a, **k: calls.append(1) or masked_conv2d(*a, **k))
    fast(x)
    assert calls


BLOCKS = {
    "generator": (styles.generator, (2, 8, 1, 1), 3),
    "generator with bias": (lambda: styles.generator(bias=True), (2, 8, 1, 1), 3),
    "discriminator": (lambda: styles.discriminator(bias=True), (2, 3, 16, 16), 3),
    "attributes": (styles.AttributeGenerator, (3, 8), 2),
    "VAE decoder": (styles.VaeDecoder, (3, 5), 2),
    "ResNet": (styles.ResNetGenerator, (2, 6, 1, 1), 3),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_compute_what_their_layers_do(name):
    make, shape, runs = BLOCKS[name]
    plain, fast, _ = pair(make, swapped=runs)
    x = torch.randn(shape)
    assert_same(step(fast, x), step(plain, x))
    assert_same(step(fast.eval(), x), step(plain.eval(), x))


def test_a_skip_reads_what_its_layer_gives():
    report = genkernels.accelerate(styles.ResNetGenerator())
    assert [entry.detail for entry in report.swapped if entry.kind == "Residual"] == ["conv2 + norm2: one operator"] * 2


@pytest.mark.parametrize("name", styles.LOOPS)
def test_recurrences_that_loop(name):
    detail, runs = {
        "row": ("Row LSTM, gates in the order o, f, i, g", 2),  # and the masked convolution before it
        "diagonal": ("Diagonal LSTM, gates in the order i, g, f, o", 1),
        "bidirectional": ("Diagonal LSTM, gates in the order i, g, f, o", 2),
    }[name]
    plain, fast, report = pair(styles.LOOPS[name], swapped=runs)
    assert report.swapped[0].detail == detail
    x = torch.randn(2, 3, 5, 7)
    assert_same(step(fast, x), step(plain, x))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fast(x), plain(x), rtol=0.1, atol=0.1)


class Reshapes(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm = nn.ConvTranspose2d(6, 4, 4), nn.BatchNorm2d(4)

    def forward(self, z, scale):
        return scale * self.norm(self.up(z.view(-1, 6, 1, 1)))


def test_an_example_shows_what_a_forward_of_its_own_takes():
    x = (torch.randn(3, 6), torch.tensor(2.0))
    assert "give example=" in genkernels.accelerate(Reshapes()).left[0].detail
    plain, fast, _ = pair(Reshapes, example=x)
    with always_kernel():
        torch.testing.assert_close(fast(*x), plain(*x), rtol=1e-4, atol=1e-4)


# --- what does not change --------------------------------------------------------------------------------------------


def small():
    """A masked layer of each kind of swap in one model that takes [N, 1, 9, 9]."""
    return nn.Sequential(
        styles.WritesItsWeight("A", 1, 4, 5, padding=2), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2)),
        styles.Residual(4),
    )  # fmt: skip


X = torch.randn(2, 1, 9, 9, generator=torch.Generator().manual_seed(1))


def test_state_dict_parameters_and_classes():
    plain = small()
    before = {name: id(tensor) for name, tensor in plain.state_dict(keep_vars=True).items()}
    modules = [(name, id(module)) for name, module in plain.named_modules()]
    genkernels.accelerate(plain)
    assert {name: id(tensor) for name, tensor in plain.state_dict(keep_vars=True).items()} == before
    assert [(name, id(module)) for name, module in plain.named_modules()] == modules
    assert isinstance(plain[0], styles.WritesItsWeight)
    assert isinstance(plain[3], nn.Sequential)
    text = repr(plain)
    genkernels.restore(plain)
    assert repr(plain) == text


def test_checkpoints_go_both_ways():
    plain, fast, _ = pair(small, swapped=3)
    other = small()
    plain(X)  # the zeros that this style writes into its weight
    fast.load_state_dict(other.state_dict())
    plain.load_state_dict(fast.state_dict())
    assert_same({"y": plain.eval()(X)}, {"y": other.eval()(X)})
    assert_same({"y": fast.eval()(X)}, {"y": other(X)})


def test_another_mask_from_a_checkpoint_counts():
    plain, fast, _ = pair(lambda: styles.MultipliesItsWeight("B", 1, 2, 3, padding=1))
    other = styles.MultipliesItsWeight("A", 1, 2, 3, padding=1)
    fast.load_state_dict(other.state_dict())
    torch.testing.assert_close(fast(X), other(X))
    fast.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fast(X), plain(X))


def test_an_optimiser_made_before_goes_on():
    plain = small()
    fast = copy.deepcopy(plain)
    losses = []
    for model in (plain, fast):
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        losses.append([])
        for index in range(6):
            if index == 2 and model is fast:
                genkernels.accelerate(model)
            optimiser.zero_grad()
            with always_kernel():
                loss = model(X).square().mean()
            loss.backward()
            optimiser.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][-1] < losses[0][0]


def test_deepcopy_and_pickle_keep_the_swap_and_restore_takes_it_back():
    plain, fast, _ = pair(small, swapped=3)
    step(fast, X)
    step(plain, X)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    expected = step(copy.deepcopy(plain), X)
    for model in (copy.deepcopy(fast), loaded):
        assert [type(a) for a in model.modules()] == [type(a) for a in fast.modules()]
        got = step(model, X)
        assert_same({"y": got["y"], "x": got["x"]}, {"y": expected["y"], "x": expected["x"]})
        genkernels.restore(model)
        assert [type(a) for a in model.modules()] == [type(a) for a in plain.modules()]
        assert not [name for module in model.modules() for name in module.__dict__ if "genkernels" in name]


def test_a_hook_made_afterwards_sees_its_call():
    _, fast, _ = pair(small, swapped=3)
    seen = []
    fast[3][0].register_forward_hook(lambda *_: seen.append("conv"))
    fast[3][2].register_forward_hook(lambda *_: seen.append("act"))
    fast[0].register_forward_hook(lambda *_: seen.append("masked"))
    fast(X)
    assert seen == ["masked", "conv", "act"]


def test_a_frozen_norm_and_a_replaced_layer_count():
    plain, fast, _ = pair(styles.discriminator, swapped=3)
    x = torch.randn(2, 3, 16, 16)
    for model in (plain, fast):
        model[3].eval()
    assert_same(step(fast, x), step(plain, x))
    for model in (plain, fast):
        model[1] = nn.Identity()
    assert_same(step(fast, x), step(plain, x))
    assert_same({"y": fast[:3](x)}, {"y": plain[:3](x)})


@pytest.mark.parametrize("change", ["channels_last", "autocast", "double", "mode switch"])
def test_layouts_dtypes_and_modes(change):
    plain, fast, _ = pair(small, swapped=3)
    x, options = X, {}
    if change == "channels_last":
        plain, fast, x = (t.to(memory_format=torch.channels_last) for t in (plain, fast, X.expand(2, 1, 9, 9)))
    elif change == "double":
        plain, fast, x = plain.double(), fast.double(), X.double()
    elif change == "mode switch":
        plain, fast = plain.eval().train().eval(), fast.eval().train().eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"), always_kernel():
        got, expected = fast(x), plain(x)
    assert got.dtype == expected.dtype
    assert got.stride() == expected.stride() or change == "channels_last"
    tolerance = 0.1 if change == "autocast" else 1e-4
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, **options)


@pytest.mark.parametrize("model", ["pixelcnn", "generator", "attributes"])
def test_it_compiles_in_one_graph_with_its_backward(model):
    make, x, runs = {
        "pixelcnn": (lambda: styles.pixelcnn(layers=2, kernel=3), X, 2),
        "generator": (styles.generator, torch.randn(2, 8, 1, 1), 3),
        "attributes": (styles.AttributeGenerator, torch.randn(2, 8), 2),
    }[model]
    plain, fast, _ = pair(make, swapped=runs)
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    with always_kernel():
        y = compiled(x)
        y.square().sum().backward()
        expected = plain(x)
        expected.square().sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        live = a.grad != 0
        torch.testing.assert_close(a.grad * live, b.grad * live, rtol=1e-3, atol=1e-3)


def test_distributed_data_parallel():
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        plain, fast, _ = pair(small, swapped=3)
        parallel = nn.parallel.DistributedDataParallel(fast)
        with always_kernel():
            for _ in range(2):
                y = parallel(X)
        y.square().sum().backward()
        plain(X)
        torch.testing.assert_close(y, plain(X), rtol=1e-4, atol=1e-4)
        assert all(p.grad is not None for p in fast.parameters())
    finally:
        dist.destroy_process_group()


def test_it_is_sampled_as_it_was():
    plain, fast, _ = pair(lambda: styles.pixelcnn(levels=3, channels=4, layers=2, kernel=3).eval(), swapped=2)
    uniforms = torch.rand(2, 1, 3, 4, dtype=torch.float64)
    samplers = [genkernels.fast_sampler(model, levels=3, in_channels=1) for model in (plain, fast)]
    assert torch.equal(*(sampler.sample(2, (3, 4), uniforms=uniforms) for sampler in samplers))


def test_small_calls_are_left_to_pytorch(monkeypatch):
    _, fast, _ = pair(styles.discriminator, swapped=3)

    def refuse(*_, **__):
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(genkernels.ops, "conv2d_bn_act", refuse)
    fast(torch.randn(2, 3, 16, 16))
    with always_kernel(), pytest.raises(AssertionError, match="the kernel was called"):
        fast(torch.randn(2, 3, 16, 16))


def test_a_tiny_call_that_has_come_before_goes_to_the_layers_themselves(monkeypatch):
    plain, fast, _ = pair(styles.discriminator, swapped=3)
    x = torch.randn(2, 3, 16, 16)
    fast(x), plain(x)  # moves the running statistics

    def refuse(*_, **__):
        raise AssertionError("the runs were looked at")

    monkeypatch.setattr(genkernels.acceleration.sequential, "run_layers", refuse)
    torch.testing.assert_close(fast(x), plain(x))
    with pytest.raises(AssertionError, match="the runs were looked at"):
        fast(torch.randn(3, 3, 16, 16))
    with always_kernel(), pytest.raises(AssertionError, match="the runs were looked at"):
        fast(x)
    sequential = next(
        m for m in fast.modules() if type(m).__mro__[1] is genkernels.acceleration.sequential.AcceleratedSequential
    )
    sequential.append(nn.Threshold(2, 7))
    assert (fast(x) == 7).all(), "a layer added later runs"


def test_twice_and_the_global_generator():
    model = small()
    state = torch.get_rng_state()
    first, second = genkernels.accelerate(model), genkernels.accelerate(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(first.swapped) == 3
    assert not second.entries
    F.relu(model(X))


@pytest.mark.parametrize("how", ["load_state_dict", "copy_", "data", "new parameter", "init"])
def test_weights_that_come_later_lose_their_masked_taps_as_in_the_original(how):
    torch.manual_seed(0)
    original = nn.Sequential(styles.WritesItsWeight("A", 8, 8, 3, padding=1))
    model = copy.deepcopy(original)
    assert genkernels.accelerate(model).entries[0].swapped == "masked_conv2d"
    new = {name: torch.randn_like(t) if name != "0.mask" else t for name, t in original.state_dict().items()}
    for each in (original, model):
        layer = each[0]
        if how == "load_state_dict":
            each.load_state_dict(new)
        elif how == "copy_":
            with torch.no_grad():
                layer.weight.copy_(new["0.weight"])
        elif how == "data":
            layer.weight.data.copy_(new["0.weight"])
        elif how == "new parameter":
            layer.weight = nn.Parameter(new["0.weight"].clone())
        else:
            torch.manual_seed(1)
            nn.init.normal_(layer.weight)
        each(torch.randn(1, 8, 6, 6))
    assert model[0].weight.equal(original[0].weight)
