"""Everything about a model that ``genkernels.accelerate`` leaves unchanged: checkpoints, copies, hooks, compilers."""

import copy
import inspect
import os

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import public_styles as styles
from helpers.accelerated import assert_same, pair, reloaded, step
from torch import nn

import genkernels
from genkernels.ops.conv_bn_act.heuristics import always_kernel

pytestmark = pytest.mark.usefixtures("seeded")


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
    expected = step(copy.deepcopy(plain), X)
    for model in (copy.deepcopy(fast), reloaded(fast)):
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


def test_twice_and_the_global_generator():
    model = small()
    state = torch.get_rng_state()
    first, second = genkernels.accelerate(model), genkernels.accelerate(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(first.swapped) == 3
    assert not second.entries
    F.relu(model(X))


@pytest.mark.parametrize("make, shape, runs", [
    (styles.AttributeGenerator, (2, 8), 2), (styles.generator, (2, 8, 1, 1), 3),
    (styles.MASKED["wrapper"], (2, 4, 8, 8), 1),
    (styles.RECTANGLES["B"][0], (2, 4, 8, 8), 1), (styles.RECTANGLES["A, writes its weight"][0], (2, 4, 8, 8), 1),
], ids=["attributes", "sequential", "masked", "rows", "rows, writes"])  # fmt: skip
def test_torch_fx_jit_trace_and_export_take_it(make, shape, runs):
    plain, fast, _ = pair(lambda: make().eval(), swapped=runs)
    x = torch.randn(shape)
    assert inspect.signature(fast.forward) == inspect.signature(plain.forward)
    for seen in (torch.fx.symbolic_trace(fast), torch.jit.trace(fast, x), torch.export.export(fast, (x,)).module()):
        torch.testing.assert_close(seen(x), plain(x), rtol=1e-4, atol=1e-5)


def test_restore_refuses_a_class_that_has_changed_again():
    layer = styles.MASKED["data"]()
    genkernels.accelerate(layer)
    layer.__class__ = type("Changed", (type(layer),), {})
    with pytest.raises(RuntimeError, match="was its class changed since"):
        genkernels.restore(layer)
    layer.__class__ = type(layer).__bases__[0]
    genkernels.restore(layer)
    assert type(layer) is styles.WritesItsWeight
