"""Images of one row, one column, one pixel: every model, and what other people make of rows that are not there."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.sampler_cases import CASES
from helpers.sampler_nets import LEVELS, a_layer, head, made, one

import genkernels
from genkernels.nn import DiagonalBiLSTM

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [(1, 1), (1, 2), (2, 1), (1, 5), (5, 1), (2, 2)]


def assert_samples_are_those_of_full_forward_passes(sample, shape, **keywords):
    uniforms = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a slow sampler would warn
        fast = sample(shape[0], uniforms=uniforms, **keywords)
    assert torch.equal(fast, sample(shape[0], uniforms=uniforms, backend="full_forward", **keywords))


@pytest.mark.parametrize("name", [name for name in CASES if name != "audio"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_models_draw_small_images_as_full_forward_passes_do(name, size):
    case = CASES[name]
    for dtype in (torch.float64, torch.float32):
        assert_samples_are_those_of_full_forward_passes(
            case.model(dtype).sample, (3, case.size[0], *size), size=size, condition=case.condition(3)
        )


@pytest.mark.parametrize("length", [1, 2, 3])
def test_audio_models_draw_short_waveforms_as_full_forward_passes_do(length):
    case = CASES["audio"]
    model = case.model()
    assert_samples_are_those_of_full_forward_passes(
        model.sample, (3, length), length=length, condition=case.condition(3)
    )


def recurrent(self, x):
    return head(self, self.lstm(self.conv(x)))


def shifted_down(self, x):
    y = torch.relu(self.conv(x))
    above = F.pad(torch.relu(y[:, :, :-1]), (0, 0, 1, 0))
    left = F.pad(y[..., :-1] * 2, (1, 0))
    return head(self, torch.cat([above, left], 1))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_other_peoples_models_draw_small_images_as_full_forward_passes_do(size):
    nets = [
        made(recurrent, {"conv": a_layer(), "lstm": DiagonalBiLSTM(6, 5), "out": one(5)}),
        made(shifted_down, {"conv": a_layer(), "out": one(12)}),
    ]
    for net in nets:
        fast = genkernels.fast_sampler(net, levels=LEVELS, in_channels=2)
        assert_samples_are_those_of_full_forward_passes(fast.sample, (3, 2, *size), size=size)
        genkernels.fast_sampler(net, torch.randint(0, LEVELS, (2, 2, *size)), levels=LEVELS)
