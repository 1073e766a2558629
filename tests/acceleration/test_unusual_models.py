"""``genkernels.accelerate`` on models that do something unusual: in their forward, to their mask, after the swap."""

import inspect
import random

import pytest
import torch
import torch.nn.functional as F
from helpers import public_styles as styles
from helpers.accelerated import assert_same, pair, step
from torch import nn
from torch.utils.checkpoint import checkpoint

import genkernels
from genkernels.acceleration import masked
from genkernels.ops.conv_bn_act.heuristics import always_kernel

pytestmark = pytest.mark.usefixtures("seeded")

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


class Body(nn.Module):
    """A forward that torch.fx can follow, once ``forward`` is written."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def body(self, x):
        return F.relu(self.norm(self.conv(x)))


# --- forwards that do more than they compute -------------------------------------------------------------------------


class KeepsItsResult(Body):
    def forward(self, x):
        self.features = self.body(x)
        return self.features


class KeepsALog(Body):
    def __init__(self):
        super().__init__()
        self.log = []

    def forward(self, x):
        self.log.append(x.shape)
        return self.body(x)


class Counts(Body):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.body(x)


class DropsItself(Body):
    def forward(self, x):
        return x if self.training and random.random() < 0.1 else x + self.body(x)


class WantsFloat32(Body):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.body(x)


class WantsNoGradient(Body):
    def forward(self, x):
        with torch.no_grad():
            return self.body(x)


class Checkpoints(Body):
    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False)


class AsksAnObject(Body):
    def __init__(self):
        super().__init__()
        self.options = type("Options", (), {"skip": True})()

    def forward(self, x):
        return self.body(x) + x if self.options.skip else self.body(x)


class CountingMask(styles.MultipliesItsWeight):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def replaced():
    model = styles.AttributeGenerator()
    model.forward = lambda z: z
    return model


def tied():
    model = nn.Sequential(
        styles.WritesItsWeight("B", 4, 4, 3, padding=1), styles.WritesItsWeight("A", 4, 4, 3, padding=1)
    )
    model[1].weight = model[0].weight
    return model


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), nn.ReLU())


LEFT = {
    "keeps its result": (KeepsItsResult, "changes its attributes"),
    "keeps a log": (KeepsALog, "changes its attributes"),
    "counts in a buffer": (Counts, "changes its attributes"),
    "counts, masked": (lambda: CountingMask("B", 4, 6, 3, padding=1), "changes its attributes"),
    "stochastic depth": (DropsItself, "draws random numbers"),
    "autocast inside": (WantsFloat32, "switches gradients, autocast or checkpointing"),
    "no_grad inside": (WantsNoGradient, "switches gradients, autocast or checkpointing"),
    "checkpointing": (Checkpoints, "switches gradients, autocast or checkpointing"),
    "asks an object": (AsksAnObject, "reads options, whose changes would go unnoticed"),
    "replaced forward": (replaced, "replaced on the instance"),
    "tied weights that are written into": (tied, "is shared"),
    "lazy": (lazy, "lazy parameters"),
    "meta": (lambda: styles.generator().to("meta"), "meta device"),
    "scripted": (lambda: torch.jit.script(styles.generator()), "TorchScript"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_a_swap_would_lose_is_left_and_nothing_in_it_is_touched(name):
    make, reason = LEFT[name]
    model = make()
    before = [(dict(part.__dict__), dict(part._buffers)) for part in model.modules() if name != "scripted"]
    logged, state = list(getattr(model, "log", [])), random.getstate()
    report = genkernels.accelerate(model)
    assert not report.swapped, str(report)
    assert any(reason in entry.detail for entry in report.left), str(report)
    assert [(dict(part.__dict__), dict(part._buffers)) for part in model.modules() if name != "scripted"] == before
    assert list(getattr(model, "log", [])) == logged
    assert random.getstate() == state
    if name == "counts in a buffer":
        assert model.calls == 0


# --- what steers a traced forward ------------------------------------------------------------------------------------


class Steered(Body):
    def __init__(self):
        super().__init__()
        self.settings, self._times = {"skip": True}, 1
        self.more = nn.ModuleList([nn.Conv2d(4, 4, 1)])
        self.last = nn.Tanh()

    def forward(self, x):
        y = self.body(x)
        for layer in self.more:
            y = layer(y)
        y = y + x if self.settings["skip"] else y
        y = y * self._times
        return y if self.last is None else self.last(y)


def grow(model):
    torch.manual_seed(5)
    model.more.append(nn.Conv2d(4, 4, 3, padding=1))


CHANGES = {
    "nothing": lambda model: None,
    "an entry of a dict": lambda model: model.settings.update(skip=False),
    "a number": lambda model: setattr(model, "_times", 3),
    "one more child": grow,
    "one child less": lambda model: setattr(model, "last", None),
    "another child": lambda model: setattr(model, "norm", nn.Identity()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_steers_a_forward_may_change_after_the_swap(change):
    plain, fast, _ = pair(Steered)
    for model in (plain, fast):
        CHANGES[change](model)
    assert_same(step(fast, X), step(plain, X))


def test_a_run_before_a_child_that_is_swapped_too(monkeypatch):
    def make():
        conv = nn.Conv2d(4, 4, 3, padding=1)
        return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), styles.Residual(4), styles.MASKED["data"]())

    plain, fast, _ = pair(make, swapped=3)
    calls = []
    conv2d_bn_act = genkernels.ops.conv2d_bn_act
    monkeypatch.setattr(genkernels.ops, "conv2d_bn_act", lambda *a, **k: calls.append(1) or conv2d_bn_act(*a, **k))
    with always_kernel():
        torch.testing.assert_close(fast(X), plain(X), rtol=1e-4, atol=1e-4)
    assert len(calls) == 2


# --- masks -----------------------------------------------------------------------------------------------------------


class MaskIsAParameter(nn.Conv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mask = nn.Parameter(styles.spatial_mask("B", 3).double(), requires_grad=False)

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


def test_a_mask_that_is_a_frozen_parameter():
    plain, fast, _ = pair(lambda: MaskIsAParameter(4, 6, 3, padding=1))
    assert_same(step(fast, X), step(plain, X), {"weight": plain.mask.float()})


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("dims", [2, 3, 4])
def test_masks_of_every_dtype_and_shape(dtype, dims):
    def make():
        layer = styles.WritesItsWeight("A", 4, 6, 3, padding=1)
        layer.mask = layer.mask[0, 0].detach().expand([1, 4, 3, 3][4 - dims :]).clone().to(dtype)
        return layer

    plain, fast, _ = pair(make)
    torch.testing.assert_close(fast(X), plain(X))


def hide(mask):
    mask[:, :, 1, 1] = False


MASK_CHANGES = {
    "in place": lambda layer: hide(layer.visible),
    "through .data": lambda layer: hide(layer.visible.data),
    "replaced": lambda layer: setattr(layer, "visible", torch.zeros_like(layer.visible)),
    "loaded": lambda layer: layer.load_state_dict({**layer.state_dict(), "visible": torch.zeros(1, 1, 3, 3)}),
}


@pytest.mark.parametrize("change", MASK_CHANGES)
def test_a_mask_changed_after_the_swap_counts(change):
    plain, fast, _ = pair(lambda: styles.MultipliesItsWeight("B", 4, 6, 3, padding=1))
    fast(X)
    for model in (plain, fast):
        MASK_CHANGES[change](model)
    torch.testing.assert_close(fast(X), plain(X))
    if change == "loaded":
        genkernels.accelerate(fast)
        fast.load_state_dict({**fast.state_dict(), "visible": plain.visible})
        torch._dynamo.reset()
        compiled = torch.compile(fast, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(X), plain(X))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("rows", [False, True], ids=["mask", "rows"])
def test_a_layer_that_casts_its_input_goes_on_taking_what_it_took(rows, dtype):
    def make():
        layer = styles.CastsItsInput("B", 4, 6, 3, padding=1)
        layer.visible = styles.KeepsRows("B", 4, 6, 3).mask.bool() if rows else layer.visible
        return layer

    plain, fast, _ = pair(make)
    x = (4 * X).to(dtype)
    with always_kernel():
        assert torch.equal(fast(x), plain(x))
        torch.testing.assert_close(fast(x.float()), plain(x.float()))
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = fast(x), plain(x)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_layer_that_casts_to_its_own_dtype(dtype):
    class Casts(styles.MultipliesItsWeight):
        def forward(self, x):
            return super().forward(x.to(dtype))

    plain, fast, report = pair(lambda: Casts("B", 4, 6, 3, padding=1).to(dtype))
    assert report.swapped[0].detail == "3x3, mask B"
    x = X.to(dtype)
    tolerance = {torch.float16: 2e-2}.get(dtype, 1e-1)
    torch.testing.assert_close(fast(x), plain(x), rtol=tolerance, atol=tolerance)


# --- norms, dtypes, frozen parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"affine": False}, {"track_running_stats": False}, {"affine": False, "track_running_stats": False}, {"eps": 0.8}],
    ids=str,
)
def test_every_batch_norm(options):
    plain, fast, _ = pair(lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, **options), nn.ReLU(True)))
    for mode in (True, False):
        assert_same(step(fast.train(mode), X), step(plain.train(mode), X))


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_model_moved_to_another_dtype(dtype, before):
    plain, fast, _ = pair(lambda: styles.pixelcnn(layers=2, kernel=3).to(dtype if before else torch.float32), swapped=2)
    x = torch.randn(2, 1, 6, 6, dtype=dtype)
    got, expected = fast.to(dtype)(x), plain.to(dtype)(x)
    tolerance = {torch.float64: 1e-10, torch.float16: 2e-2}.get(dtype, 1e-1)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_frozen_parameters_get_no_gradient():
    plain, fast, _ = pair(styles.discriminator, swapped=3)
    for model in (plain, fast):
        model[2].requires_grad_(False)
        model[3].weight.requires_grad_(False)
    x = torch.randn(2, 3, 16, 16)
    assert_same(step(fast, x), step(plain, x))  # the same names have one
    assert fast[2].weight.grad is None


# --- tools that look at a model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, shape, runs", [
    (styles.AttributeGenerator, (2, 8), 2), (styles.generator, (2, 8, 1, 1), 3), (styles.MASKED["wrapper"], X.shape, 1),
    (styles.RECTANGLES["B"][0], X.shape, 1), (styles.RECTANGLES["A, writes its weight"][0], X.shape, 1),
], ids=["attributes", "sequential", "masked", "rows", "rows, writes"])  # fmt: skip
def test_torch_fx_jit_trace_and_export_take_it(make, shape, runs):
    plain, fast, _ = pair(lambda: make().eval(), swapped=runs)
    x = torch.randn(shape)
    assert inspect.signature(fast.forward) == inspect.signature(plain.forward)
    for seen in (torch.fx.symbolic_trace(fast), torch.jit.trace(fast, x), torch.export.export(fast, (x,)).module()):
        torch.testing.assert_close(seen(x), plain(x), rtol=1e-4, atol=1e-5)


def test_a_trace_holds_one_operator_where_the_choice_depends_on_gradients():
    """jit.trace traces a second time, without gradients, and compares the graphs."""
    plain, fast, _ = pair(lambda: nn.Sequential(nn.ConvTranspose2d(64, 3, 4, 2, 1), nn.Tanh()).eval())
    x = torch.randn(6, 64, 32, 32)  # 19 million multiply-adds: the kernel's without gradients, PyTorch's with them
    traced = torch.jit.trace(fast, x)
    assert "conv_act" in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), plain(x), rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_off_where_it_is_called(mode):
    model = styles.pixelcnn(layers=2, kernel=3)
    with mode():
        report = genkernels.accelerate(model)
    assert len(report.swapped) == 2, str(report)


def test_restore_refuses_a_class_that_has_changed_again():
    layer = styles.MASKED["data"]()
    genkernels.accelerate(layer)
    layer.__class__ = type("Changed", (type(layer),), {})
    with pytest.raises(RuntimeError, match="was its class changed since"):
        genkernels.restore(layer)
    layer.__class__ = type(layer).__bases__[0]
    genkernels.restore(layer)
    assert type(layer) is styles.WritesItsWeight


def test_masks_on_a_gpu_are_read_once_for_each_tensor_and_version(monkeypatch):
    layer, mask, value, read = nn.Identity(), torch.ones(3, 3), torch.ones(3, 3), []
    monkeypatch.setattr(masked, "_same", lambda a, b: read.append(1) or torch.equal(a, b))
    for number, expected in ((1, False), (0, True), (1, False)):
        mask[0, 0] = number
        assert [masked._other_elsewhere(layer, [(mask, value)]) for _ in range(2)] == [expected] * 2
    assert masked._other_elsewhere(layer, [(torch.zeros(3, 3), value)])
    assert len(read) == 4
