"""Equivalence checks: pre-activations beside the kink of a ReLU pass, and gradients that are always wrong do not."""

import copy

import pytest
import torch
from torch import nn

import genkernels
from genkernels.acceleration import sequential
from genkernels.acceleration.verify import NotEquivalentError, check_equivalence, random_input


def beside_the_kink(activation: nn.Module) -> nn.Sequential:
    """A block of which the trial input puts one pre-activation of each channel within rounding of zero."""
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 64, 3, padding=1)
    with torch.no_grad():
        conv.bias.zero_()
        y = conv(random_input(conv, sequential.trial_input_shape(conv)))
        conv.bias.copy_(-y[0].flatten(1)[torch.arange(64), torch.arange(64) % y[0, 0].numel()])
    return nn.Sequential(conv, activation)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2)], ids=str)
def test_a_block_is_swapped_though_rounding_decides_the_side_of_many_elements(activation):
    model = beside_the_kink(activation)
    report = genkernels.accelerate(model)
    assert [entry.swapped for entry in report.entries] == ["conv2d_bn_act"], report


def test_a_kink_inside_of_a_module_is_no_reason_either():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = beside_the_kink(nn.ReLU())
            self.second = nn.Conv2d(64, 8, 1)

        def forward(self, x):
            return self.second(self.first[1](self.first[0](x)))

    module = Inner()
    flipped = copy.deepcopy(module)

    def nudge(taken):
        with torch.no_grad():
            taken.first[0].bias.add_(2e-7)  # to the other side, as another order of the sums would

    x = random_input(module, sequential.trial_input_shape(module.first[0]))
    check_equivalence(module, lambda taken: nudge(taken) if taken.second.weight.dtype == torch.float32 else None, [x])
    assert all(p.equal(q) for p, q in zip(module.parameters(), flipped.parameters(), strict=True))


def test_a_gradient_that_is_always_wrong_is_found():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * (1.5 if grad.dtype == torch.float32 else 1)

    class Doubtful(nn.Module):
        wrong = False

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x):
            return self.layer(Wrong.apply(x) if self.wrong else x)

    with pytest.raises(NotEquivalentError, match="its gradient differs"):
        check_equivalence(Doubtful(), lambda taken: setattr(taken, "wrong", True), [torch.randn(3, 5)])


@pytest.mark.parametrize("seed", range(4))
def test_no_block_of_a_random_generator_is_lost(seed):
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in ((32, 64), (64, 32), (32, 16)):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)]
    report = genkernels.accelerate(nn.Sequential(*layers))
    assert [entry.swapped for entry in report.entries] == ["conv_transpose2d_bn_act"] * 3, report
