"""``genkernels.accelerate``: what it leaves as it is, and the reason that it gives."""

import public_styles as styles
import pytest
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
    "steered by data": (Twice, "torch.fx cannot follow"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_would_be_lost_is_left_with_the_reason(name):
    make, reason = LEFT[name]
    model = make()
    classes = [type(module) for module in model.modules()]
    report = genkernels.accelerate(model)
    assert not report.swapped, str(report)
    assert any(reason in entry.detail for entry in report.left), str(report)
    assert reason in str(report)
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("model, kind", [("x", "str"), (nn.ReLU, "type")])
@pytest.mark.parametrize("function", [genkernels.accelerate, genkernels.restore])
def test_a_model_that_is_no_module_is_named_with_its_type(function, model, kind):
    with pytest.raises(TypeError, match=rf"^model: expected a torch\.nn\.Module; got {kind}$"):
        function(model)


def test_what_follows_a_convolution_and_no_operator_has_is_the_reason():
    class Down(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Conv2d(8, 16, 4, 2, 1), nn.InstanceNorm2d(16), nn.LeakyReLU(0.2))

        def forward(self, x):
            return self.model(x)

    for kind in (nn.InstanceNorm2d(16), nn.GroupNorm(4, 16), nn.SiLU()):
        model = Down()
        model.model[1] = kind
        (entry,) = genkernels.accelerate(model).entries
        assert entry.swapped is None
        assert entry.detail.startswith(f"{type(kind).__name__} follows; the operator has BatchNorm2d, ReLU"), entry


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
