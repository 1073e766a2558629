"""Logits from which nothing can be drawn, and weights that are no numbers: errors, in every way of sampling."""

import math

import pytest
import torch
from helpers.sampler_cases import CASES
from torch import nn

import genkernels
from genkernels.models import PixelCNN
from genkernels.nn import MaskedConv2d

BACKENDS = ["cpu", "torch", "full_forward", None]
LEVELS = 19  # more than a register holds


class Spoilt(nn.Module):
    """A causal model whose logits are ``value`` for some levels at one sub-pixel of one image, its condition."""

    def __init__(self, value, levels, healthy=False):
        super().__init__()
        self.conv = MaskedConv2d(2, 2 * LEVELS, 3, mask_type="A", channel_groups=2)
        self.value, self.levels, self.healthy = value, levels, healthy

    def forward(self, x, which):
        extra = torch.zeros(len(x), LEVELS, 2, *x.shape[2:], dtype=x.dtype)
        if not self.healthy:
            for level in self.levels:
                extra[which == 1, level, 1, 2, 3] = self.value
        return self.conv(x).unflatten(1, (2, LEVELS)).transpose(1, 2) + extra


def fast_sampler_of(model):
    model.healthy = True
    fast = genkernels.fast_sampler(model, levels=LEVELS, in_channels=2, condition=torch.tensor([1, 0]))
    model.healthy = False
    return fast


WRONG = {
    "a NaN": (math.nan, [4]),
    "a NaN at the end": (math.nan, [LEVELS - 1]),
    "all NaN": (math.nan, range(LEVELS)),
    "+inf": (math.inf, [17]),
    "-inf alone": (-math.inf, range(LEVELS)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", WRONG)
def test_logits_that_are_no_distribution_are_an_error_that_names_the_sub_pixel(name, backend):
    fast = fast_sampler_of(Spoilt(*WRONG[name]))
    which = torch.tensor([0, 0, 0, 1, 0])
    message = r"logits: expected finite .* at image 3, channel 1, row 2, column 3"
    for keywords in ({}, {"top_k": 2}, {"temperature": 1e-3}):
        with pytest.raises(ValueError, match=message):
            fast.sample(5, (4, 5), condition=which, backend=backend, **keywords)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_known_needs_no_logits(backend):
    fast = fast_sampler_of(Spoilt(math.nan, [4]))
    known = torch.zeros(1, 1, 4, 5, dtype=torch.bool)
    known[:, :, 2, 3] = True
    given = torch.full((1, 2, 4, 5), 7)
    images = fast.sample(2, (4, 5), condition=torch.tensor([1, 0]), given=given, known=known, backend=backend)
    assert (images[:, :, 2, 3] == 7).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_levels_whose_logits_are_minus_infinity_are_never_drawn(backend):
    banned = [*range(1, 12), 18]
    fast = fast_sampler_of(Spoilt(-math.inf, banned))
    images = fast.sample(64, (3, 4), condition=torch.ones(64), backend=backend)
    assert not set(images[:, 1, 2, 3].tolist()) & set(banned)


def test_parts_of_a_batch_number_the_images_of_the_whole(monkeypatch):
    fast = fast_sampler_of(Spoilt(math.nan, [4]))
    monkeypatch.setattr("genkernels.sampling.executors.registry.MEMORY", 1)
    for backend in ("cpu", "torch"):
        with pytest.raises(ValueError, match="at image 3, channel 1, row 2, column 3"):
            fast.sample(5, (4, 5), condition=torch.tensor([0, 0, 0, 1, 1]), backend=backend)


class Banning(nn.Module):
    """Logits that hold -inf everywhere."""

    def __init__(self):
        super().__init__()
        self.conv = MaskedConv2d(1, 3, 3, mask_type="A")
        self.register_buffer("ban", torch.tensor([0.0, -math.inf, 0.0]).view(1, 3, 1, 1))

    def forward(self, x):
        return self.conv(x) + self.ban


def test_a_model_that_bans_levels_gets_a_fast_sampler():
    fast = genkernels.fast_sampler(Banning(), levels=3, in_channels=1)
    assert math.isfinite(fast.verification.error) and math.isfinite(fast.verification.scale)
    assert set(fast.sample(8, 6).unique().tolist()) == {0, 2}


def test_a_model_whose_logits_are_nan_gets_no_fast_sampler():
    model = Banning()
    model.ban.fill_(math.inf)
    with pytest.raises(ValueError, match=r"logits: expected finite .* at image 0, channel 0, row 0, column 0"):
        genkernels.fast_sampler(model, levels=3, in_channels=1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_layer_whose_weight_is_not_finite_is_named(value):
    model = PixelCNN(1, 8, 1, 4, image_size=4)
    with torch.no_grad():
        model.layers[0].weight.view(-1)[0] = value
    with pytest.raises(ValueError, match=r"layer 'layers.0': its weight is not finite"):
        genkernels.fast_sampler(model)
    with (
        pytest.warns(UserWarning, match=r"layer 'layers.0': its weight is not finite"),
        pytest.raises(ValueError, match=r"logits: expected finite .* at image 0"),
    ):
        model.sample(2)


def test_what_stands_under_a_mask_or_is_never_read_is_no_reason():
    model = PixelCNN(1, 8, 1, 4, image_size=4)
    expected = model.sample(2, uniforms=torch.full((2, 1, 4, 4), 0.4))
    with torch.no_grad():
        model.layers[0].weight[..., -1, -1] = math.nan
    model.register_buffer("best", torch.tensor(math.nan))
    assert model.sample(2, uniforms=torch.full((2, 1, 4, 4), 0.4)).equal(expected)


@pytest.mark.parametrize("name", ["pixelcnn colours", "row lstm", "diagonal lstm", "gated"])
def test_every_model_with_a_nan_in_its_logits_says_so(name):
    case = CASES[name]
    model = case.model(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    with (
        pytest.warns(UserWarning, match="its weight is not finite"),
        pytest.raises(ValueError, match="image 0, channel 0, row 0"),
    ):
        model.sample(2, size=case.size[1:])
