"""``torch.jit.trace``: the traced module is the module, with gradients, and tracing it twice gives the same graph."""

import pytest
import torch
from helpers.every_layer import LAYERS, MODELS, layer_and_input, model_and_input

from genkernels.ops.masked_conv import dispatch

EVERY = {
    **{f"layer: {name}": (layer_and_input, name) for name in LAYERS},
    **{f"model: {name}": (model_and_input, name) for name in MODELS},
}
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


def assert_traced_is_the_module(module, x):
    traced = torch.jit.trace(module, x)  # checks that a second trace, without gradients, is the same
    other = x.roll(1, -1)
    y, expected = traced(other), module(other)
    torch.testing.assert_close(y, expected)
    grads = [torch.autograd.grad(result.square().sum(), module.parameters()) for result in (y, expected)]
    torch.testing.assert_close(*grads)
    with torch.no_grad():
        torch.testing.assert_close(traced(other), module(other))


@pytest.mark.parametrize("name", EVERY)
def test_a_traced_module_is_the_module(name, seeded):
    make, name = EVERY[name]
    module, x = make(name)
    assert_traced_is_the_module(module.eval(), x)


def test_a_traced_gate_in_one_pass_is_the_module(monkeypatch, seeded):
    monkeypatch.setattr(dispatch, "gate_is_fused", lambda x: True)
    module, x = layer_and_input("gated A")
    assert_traced_is_the_module(module, x)
