"""``genkernels.accelerate`` on instance norm: pix2pix's and CycleGAN's blocks, and what stands beside them."""

import copy
import pickle

import pytest
import torch
from helpers import public_styles as styles
from torch import nn

import genkernels
from genkernels.ops.conv_bn_act.heuristics import always_kernel

pytestmark = pytest.mark.usefixtures("seeded")

NETWORKS = {
    "generator": (lambda: styles.reflecting_generator(width=4), (2, 3, 16, 20)),
    "discriminator": (lambda: styles.patch_discriminator(width=4), (2, 3, 32, 36)),
    "u-net": (lambda: styles.UNet(width=4), (2, 3, 16, 16)),
}


def with_gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, [x, *model.parameters()], grad)]


def assert_equal(model: nn.Module, other: nn.Module, x: torch.Tensor, close: float = 2e-4) -> None:
    expected = with_gradients(other, x)
    size = max(float(t.double().norm()) for t in expected[1:])  # the gradient of a bias before a norm is zero
    for one, two in zip(with_gradients(model, x), expected, strict=True):
        assert one.dtype == two.dtype
        assert float((one.double() - two.double()).norm()) <= close * max(size, 1.0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_with_instance_norm_are_swapped_and_stay_what_they_were(name, training):
    make, shape = NETWORKS[name]
    model = make().double().train(training)
    swapped = copy.deepcopy(model)
    report = genkernels.accelerate(swapped, example=torch.randn(shape, dtype=torch.float64))
    norms = sum(type(module) is nn.InstanceNorm2d for module in model.modules())
    assert sum(entry.swapped == "instance_norm_act" for entry in report.entries) == norms > 0, str(report)
    x = torch.randn(shape)
    with always_kernel():
        assert_equal(swapped, model, x.double(), close=1e-9)
    assert_equal(swapped.float(), model.float(), x)
    assert list(swapped.state_dict()) == list(model.state_dict())
    for again in (copy.deepcopy(swapped), pickle.loads(pickle.dumps(swapped))):
        assert_equal(again, model, x)
    genkernels.restore(swapped)
    assert [type(module) for module in swapped.modules()] == [type(module) for module in model.modules()]


def test_results_are_contiguous_where_pytorch_gives_contiguous_ones():
    """So that a `view` behind it goes on working in a model that was moved to channels_last."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU())
    swapped = copy.deepcopy(model)
    genkernels.accelerate(swapped)
    x = torch.randn(2, 3, 9, 8).to(memory_format=torch.channels_last)
    y, expected = swapped(x), model(x)
    assert y.is_contiguous()
    assert expected.is_contiguous()
    assert_equal(swapped, model, x)


def grouped():
    return nn.Conv2d(4, 4, 3, groups=2)


def hooked():
    conv = nn.Conv2d(4, 4, 3)
    conv.register_forward_hook(lambda *_: None)
    return conv


ALONE = {
    "groups": grouped,
    "reflected": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "dilated": lambda: nn.Conv2d(4, 4, 3, dilation=2),
    "a padding by name": lambda: nn.Conv2d(4, 4, 3, padding="same"),
    "hooked": hooked,
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)),
    "old weight norm": lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)),
    "pixel shuffle": lambda: nn.PixelShuffle(1),
}


class Called(nn.Module):
    """The same row of layers, called in a forward of its own."""

    def __init__(self, first, norm, last):
        super().__init__()
        self.first, self.norm, self.last = first, norm, last

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


@pytest.mark.parametrize("row", [nn.Sequential, Called])
@pytest.mark.parametrize("name", ALONE)
def test_the_norm_goes_alone_behind_a_convolution_that_no_operator_has(name, row):
    torch.manual_seed(0)
    model = row(ALONE[name](), nn.InstanceNorm2d(4, affine=True), nn.LeakyReLU(0.2)).eval()
    swapped = copy.deepcopy(model)
    x = torch.randn(2, 4, 7, 8)
    report = genkernels.accelerate(swapped, example=x)
    assert [entry.swapped for entry in report.swapped] == ["instance_norm_act"], str(report)
    assert_equal(swapped, model, x)


def test_an_instance_norm_without_an_activation_is_swapped_too():
    model = nn.Sequential(nn.Flatten(0, 1), nn.Unflatten(0, (2, 4)), nn.InstanceNorm2d(4))
    swapped = copy.deepcopy(model)
    report = genkernels.accelerate(swapped)
    assert [(entry.name, entry.kind) for entry in report.swapped] == [("2", "InstanceNorm2d")]
    assert_equal(swapped, model, torch.randn(2, 4, 6, 5))


def norm_with(change):
    norm = nn.InstanceNorm2d(4)
    change(norm)
    return norm


LEFT = {
    "running statistics": (nn.InstanceNorm2d(4, track_running_stats=True), nn.ReLU(), "keeps running statistics"),
    "hook": (norm_with(lambda n: n.register_forward_hook(lambda *_: None)), nn.ReLU(), "hooks on its InstanceNorm2d"),
    "forward": (norm_with(lambda n: setattr(n, "forward", lambda x: x)), nn.ReLU(), "is replaced on the instance"),
    "slope": (nn.InstanceNorm2d(4), nn.LeakyReLU(-0.2), "slope of its LeakyReLU is negative"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_would_be_lost_is_left_with_the_reason(name):
    norm, activation, reason = LEFT[name]
    model = nn.Sequential(nn.Conv2d(4, 4, 3), norm, activation)
    report = genkernels.accelerate(model)
    assert not report.swapped, str(report)
    assert any(reason in entry.detail for entry in report.left), str(report)


def test_running_statistics_switched_on_later_count():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU())
    genkernels.accelerate(model)
    model[1] = nn.InstanceNorm2d(4, track_running_stats=True)
    model(torch.randn(2, 3, 6, 6) + 5)
    assert bool((model[1].running_mean != 0).all())


def test_one_pixel_is_refused_as_by_pytorch():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU())
    x = torch.randn(2, 3, 3, 3)
    messages = []
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            model(x)
        messages.append(str(caught.value))
        genkernels.accelerate(model)
    assert messages[0] == messages[1]
