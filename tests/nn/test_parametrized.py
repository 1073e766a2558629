"""Parametrized layers: a pass computes each parameter once, so that spectral norm is that of ``torch.nn``."""

import pytest
import torch
from helpers.every_layer import LAYERS, MODELS, SIZES, layer_and_input, model_and_input
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from genkernels.nn import ConvBnAct2d, ConvTransposeBnAct2d, MaskedConv2d
from genkernels.ops.core import verbose


class Counting(nn.Module):
    """Changes nothing and counts how often it is asked."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, value):
        self.calls += 1
        return value * 1


def counted(module):
    """A counter for each parameter, by its name."""
    counters = {}
    for path, part in list(module.named_modules()):
        for name in [name for name, value in part._parameters.items() if value is not None]:
            counters[f"{path}.{name}"] = Counting()
            parametrize.register_parametrization(part, name, counters[f"{path}.{name}"])
    return counters


def calls_of_a_pass(module, x):
    counters = counted(module)
    for counter in counters.values():
        counter.calls = 0
    module(x)
    return {name: counter.calls for name, counter in counters.items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_reads_each_parameter_once_in_a_pass(name, size, training):
    layer, x = layer_and_input(name, size)
    calls = calls_of_a_pass(layer.train(training), x)
    assert calls
    assert set(calls.values()) == {1}, calls


@pytest.mark.parametrize("name", ["down without norm", "up without norm"])
def test_a_layer_that_says_what_runs_reads_no_parameter_for_it(name, monkeypatch, capsys):
    monkeypatch.setattr(verbose, "_ON", True)
    monkeypatch.setattr(verbose, "_said", set())
    assert set(calls_of_a_pass(*layer_and_input(name)).values()) == {1}
    assert "conv_bn_act" in capsys.readouterr().err


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_reads_each_parameter_once_in_a_pass(name, training):
    model, x = model_and_input(name)
    calls = calls_of_a_pass(model.train(training), x)
    assert calls
    assert set(calls.values()) == {1}, calls


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (lambda c: ConvBnAct2d(c, c, 4, 2, 1, batch_norm=False), lambda c: nn.Conv2d(c, c, 4, 2, 1)),
        (lambda c: ConvTransposeBnAct2d(c, c, 4, 2, 1, batch_norm=False), lambda c: nn.ConvTranspose2d(c, c, 4, 2, 1)),
        (lambda c: MaskedConv2d(c, c, 1, mask_type="B"), lambda c: nn.Conv2d(c, c, 1)),
    ],
    ids=["down", "up", "pointwise"],
)
def test_spectral_norm_is_that_of_torch_over_several_steps(kind, plain, size):
    channels, *shape = SIZES[size]
    ours, theirs = kind(channels), plain(channels)
    ours.load_state_dict(theirs.state_dict())
    for layer in (ours, theirs):
        torch.manual_seed(1)
        spectral_norm(layer)
    weights = [layer.parametrizations.weight.original for layer in (ours, theirs)]
    for _ in range(3):
        x = torch.randn(shape[0], channels, *shape[1:])
        y, expected = ours(x), theirs(x)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        grads = [
            torch.autograd.grad(result.square().mean(), weight)[0]
            for result, weight in zip((y, expected), weights, strict=True)
        ]
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5 * grads[1].abs().max().item())
