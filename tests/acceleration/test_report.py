"""The report of ``genkernels.accelerate``: what is left as it is, and the reason that it gives."""

import pytest
import torch
import torch.nn.functional as F
from helpers import public_styles as styles
from torch import nn

import genkernels

pytestmark = pytest.mark.usefixtures("seeded")


def sequential(*, norm=None, hook=None, **options):
    conv = nn.Conv2d(4, 4, 3, **options)
    model = nn.Sequential(conv, norm or nn.BatchNorm2d(4), nn.ReLU())
    if hook is not None:
        hook(model)
    return model


def hooked_wrapper():
    wrapper = styles.Wrapper("B", 4, 6, 3)
    wrapper.conv.register_forward_hook(lambda *_: None)
    return wrapper


def not_causal():
    layer = styles.MultipliesItsWeight("B", 4, 6, 3, padding=1)
    layer.visible[:, :, 2] = True
    return layer


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


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else x


LEFT = {
    "groups": (lambda: sequential(groups=2), "groups is 2"),
    "dilation": (lambda: sequential(dilation=2), "dilation is (2, 2)"),
    "padding mode": (lambda: sequential(padding=1, padding_mode="reflect"), "padding_mode is 'reflect'"),
    "padding word": (lambda: sequential(padding="same"), "padding is 'same'"),
    "momentum": (lambda: sequential(norm=nn.BatchNorm2d(4, momentum=None)), "momentum None"),
    "hook": (
        lambda: sequential(hook=lambda m: m[1].register_forward_hook(lambda *_: None)), "hooks on its BatchNorm2d",
    ),
    "weight norm": (
        lambda: sequential(hook=lambda m: nn.utils.parametrizations.weight_norm(m[0])), "parametrization computes",
    ),
    "spectral norm": (
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)), nn.ReLU()), "computes its weight",
    ),
    "weight norm, the mask written into the weight": (
        lambda: nn.utils.parametrizations.weight_norm(styles.MASKED["data"]()), "which does not last",
    ),
    "old weight norm, the mask written into the weight": (
        lambda: nn.utils.weight_norm(styles.MASKED["data"]()), "which does not last",
    ),
    "masked and strided": (lambda: styles.WritesItsWeight("B", 4, 6, 3, 2, 1), "stride is (2, 2)"),
    "masked and grouped": (lambda: styles.WritesItsWeight("B", 4, 6, 3, padding=1, groups=2), "groups is 2"),
    "hook inside": (hooked_wrapper, "hooks on the module inside"),
    "not causal": (not_causal, "not causal"),
    "cropped to its live taps": (lambda: styles.CroppedRow(4, 6, 3), "nothing to skip"),
    "counts, masked": (lambda: CountingMask("B", 4, 6, 3, padding=1), "changes its attributes"),
    "replaced forward": (replaced, "replaced on the instance"),
    "tied weights that are written into": (tied, "is shared"),
    "lazy": (lazy, "lazy parameters"),
    "meta": (lambda: styles.generator().to("meta"), "meta device"),
    "scripted": (lambda: torch.jit.script(styles.generator()), "TorchScript"),
    "steered by data": (Twice, "torch.fx cannot follow"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_would_be_lost_is_left_with_the_reason(name):
    make, reason = LEFT[name]
    model = make()
    classes = [type(module) for module in model.modules()]
    before = [(dict(part.__dict__), dict(part._buffers)) for part in model.modules() if name != "scripted"]
    report = genkernels.accelerate(model)
    assert not report.swapped, str(report)
    assert any(reason in entry.detail for entry in report.left), str(report)
    assert reason in str(report)
    assert [type(module) for module in model.modules()] == classes
    assert [(dict(part.__dict__), dict(part._buffers)) for part in model.modules() if name != "scripted"] == before


class OwnNorm(nn.Module):
    """A norm that nobody has heard of."""

    def forward(self, x):
        return x / x.norm(dim=1, keepdim=True)


class Called(nn.Module):
    """Three layers in a forward of its own."""

    def __init__(self, *layers):
        super().__init__()
        self.first, self.second, self.third = layers

    def forward(self, x):
        return self.third(self.second(self.first(x)))


FOLLOWERS = [nn.LayerNorm([16, 4, 4]), nn.GroupNorm(4, 16), nn.SiLU(), OwnNorm(), nn.Dropout(0.1)]


@pytest.mark.parametrize("row", [nn.Sequential, Called])
@pytest.mark.parametrize("follower", FOLLOWERS, ids=lambda layer: type(layer).__name__)
def test_what_follows_a_convolution_and_no_operator_has_is_the_reason(row, follower):
    model = nn.ModuleDict({"down": row(nn.Conv2d(8, 16, 4, 2, 1), follower, nn.LeakyReLU(0.2))})
    (entry,) = genkernels.accelerate(model).entries
    assert entry.swapped is None
    expected = f"{type(follower).__name__} follows; the operator has BatchNorm2d, InstanceNorm2d, ReLU"
    assert expected in entry.detail, entry


@pytest.mark.parametrize("row", [nn.Sequential, Called])
def test_what_was_near_nothing_has_no_line(row):
    assert not genkernels.accelerate(row(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten())).entries


def test_a_masked_layer_that_was_swapped_is_not_also_left():
    entries = genkernels.accelerate(nn.Sequential(styles.WritesItsWeight("A", 4, 8, 3, padding=1), nn.ReLU())).entries
    assert [entry.swapped for entry in entries] == ["masked_conv2d"]


def test_a_mask_in_an_overridden_call_is_told_as_such():
    class Calls(nn.Conv2d):
        def __init__(self):
            super().__init__(4, 4, 3, padding=1)
            self.register_buffer("mask", styles.spatial_mask("A", 3))

        def __call__(self, x):
            self.weight.data *= self.mask
            return super().__call__(x)

    (entry,) = genkernels.accelerate(Calls()).entries
    assert (entry.swapped, entry.detail) == (None, "its __call__ is overridden")


# --- masks and crops that are not tried have a line, and nothing else has --------------------------------------------


class Conditioned(styles.MultipliesItsWeight):
    def __init__(self):
        super().__init__("B", 4, 6, 3, padding=1)
        self.from_condition = nn.Linear(5, 6)

    def forward(self, x, h):
        return super().forward(x) + self.from_condition(h)[:, :, None, None]


class ConditionedAlone(styles.MultipliesItsWeight):
    def forward(self, x, h):
        return super().forward(x) + h


class ConditionedWrapper(styles.Wrapper):
    def __init__(self):
        super().__init__("B", 4, 6, 3)
        self.from_condition = nn.Conv2d(5, 6, 1)

    def forward(self, x, h=None):
        y = super().forward(x)
        return y if h is None else y + self.from_condition(h)


class TwoStacks(nn.Module):
    def __init__(self):
        super().__init__()
        self.vertical, self.horizontal = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
        self.register_buffer("rows", torch.tensor([[1.0], [1.0], [0.0]]).expand(3, 3).clone())
        self.register_buffer("columns", torch.tensor([[1.0, 1.0, 0.0]]))

    def forward(self, x):
        v = F.conv2d(x, self.vertical.weight * self.rows, padding=1)
        return v + F.conv2d(x, self.horizontal.weight * self.columns, padding=(0, 1))


class WithAScale(styles.MultipliesItsWeight):
    def __init__(self):
        super().__init__("B", 4, 6, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, x):
        return super().forward(x) * self.scale


class CropsAndGates(nn.Module):
    """The vertical stack by a shift: two rows too many, of which the last are cut off."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, (2, 3), padding=(2, 1))

    def forward(self, x):
        a, b = self.conv(x)[:, :, : x.shape[2], :].chunk(2, 1)
        return torch.tanh(a) * torch.sigmoid(b)


class CropsTheEnd(CropsAndGates):
    def forward(self, x, h):
        a, b = (self.conv(x)[..., :-2, :] + h).chunk(2, 1)
        return torch.tanh(a) * torch.sigmoid(b)


UNTRIED = {
    "conditioned": (Conditioned, "its forward takes 2 arguments"),
    "conditioned, one weight": (lambda: ConditionedAlone("B", 4, 6, 3), "its forward takes 2 arguments"),
    "a wrapper, conditioned": (ConditionedWrapper, "its forward takes 2 arguments"),
    "two stacks in one": (TwoStacks, "it holds 2 weights of convolutions"),
    "with a scale": (WithAScale, "it holds more than a convolution with its weight and bias"),
    "crops and gates": (CropsAndGates, "the padded result of conv is cropped"),
    "crops the end": (CropsTheEnd, "the padded result of conv is cropped"),
}


@pytest.mark.parametrize("name", UNTRIED)
def test_what_holds_a_mask_or_crops_has_one_line(name):
    make, reason = UNTRIED[name]
    for model, where in ((make(), ""), (nn.ModuleList([make()]), "0")):
        (entry,) = genkernels.accelerate(model).entries
        assert (entry.name, entry.swapped) == (where, None)
        assert reason in entry.detail


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(4, 8, 4, 2, 1), nn.ConvTranspose2d(8, 4, 4, 2, 1)
        self.last = nn.Conv2d(8, 4, 3, padding=1)
        self.register_buffer("window", torch.ones(3, 3) / 9)
        self.register_buffer("attention_mask", torch.ones(8, 8).tril())

    def forward(self, x):
        y = self.up(self.down(x))
        return self.last(torch.cat([x, y[:, :, : x.shape[2], : x.shape[3]]], 1))[:, :3]


@pytest.mark.parametrize(
    "make",
    [
        styles.generator,
        styles.discriminator,
        styles.AttributeGenerator,
        styles.VaeDecoder,
        styles.ResNetGenerator,
        Unet,
    ],
    ids=lambda make: make.__name__,
)
def test_what_has_nothing_to_do_with_masks_has_no_line(make):
    assert not genkernels.accelerate(make()).left
