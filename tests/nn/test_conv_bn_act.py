"""`nn.ConvTransposeBnAct2d` and `nn.ConvBnAct2d` are the three layers of torch.nn that they stand for."""

import copy

import pytest
import torch
from torch import nn

from genkernels.nn import ConvBnAct2d, ConvTransposeBnAct2d

LAYERS = {ConvTransposeBnAct2d: nn.ConvTranspose2d, ConvBnAct2d: nn.Conv2d}
ACTIVATIONS = {
    None: nn.Identity(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.2),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
}


def pair(cls, *arguments, activation=None, batch_norm=True, dtype=torch.float32, **options):
    """Our layer, and torch.nn's three with the same parameters."""
    ours = cls(
        *arguments, activation=activation, negative_slope=0.2, batch_norm=batch_norm, dtype=dtype,
        **options
    )  # fmt: skip
    conv = LAYERS[cls](*arguments, bias=ours.bias is not None, dtype=dtype)
    conv.weight.data = ours.weight.detach().clone()
    if ours.bias is not None:
        conv.bias.data = ours.bias.detach().clone()
    norm = nn.Identity() if ours.bn is None else copy.deepcopy(ours.bn)
    return ours, nn.Sequential(conv, norm, ACTIVATIONS[activation])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("batch_norm", "bias"), [(True, None), (True, True), (False, None), (False, False)])
@pytest.mark.parametrize("cls", LAYERS)
def test_it_trains_and_evaluates_as_the_three_layers_do(cls, batch_norm, bias, activation):
    torch.manual_seed(0)
    ours, theirs = pair(
        cls, 5, 7, 4, 2, 1, activation=activation, batch_norm=batch_norm, bias=bias, dtype=torch.float64
    )
    for step in range(5):
        training = step % 3 != 2
        x, grad = torch.randn(3, 5, 6, 5, dtype=torch.float64), None
        results = []
        for module in (ours, theirs):
            module.train(training)
            inputs = x.clone().requires_grad_()
            y = module(inputs)
            grad = torch.randn_like(y) if grad is None else grad
            parameters = {"x": inputs} | {name.split(".")[-1] + str("bn" in name or "1." in name): p
                                          for name, p in module.named_parameters()}  # fmt: skip
            results.append((y, dict(zip(parameters, torch.autograd.grad(y, parameters.values(), grad), strict=True))))
        (y, grads), (expected, expected_grads) = results
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(grads, expected_grads)
    if ours.bn is not None:
        for name, buffer in theirs[1].named_buffers():
            torch.testing.assert_close(ours.bn.get_buffer(name), buffer)
