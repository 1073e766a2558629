"""What a refusal says: the layer, and the line of the user's code."""

import inspect

import pytest
import torch
from helpers.sampler_nets import Plain
from torch import nn

import genkernels
from genkernels.sampling import NotTraceable


class Net(nn.Module):
    def __init__(self, body, mask_type="A"):
        super().__init__()
        self.body, self.conv = body, Plain(mask_type, 1, 4, 3, padding=1)

    def forward(self, x):
        return self.body(self, x)


def flipped(net, x):
    y = net.conv(x)
    return y.flip(2)  # refused


def looks_ahead(net, x):
    y = net.conv(x)
    return y.roll(0) if y.dim() == 3 else nn.functional.conv2d(y, torch.ones(4, 4, 3, 3), padding=1)  # refused


def sees_itself(net, x):
    return net.conv(x).relu() * x  # refused


@pytest.mark.parametrize("body", [flipped, looks_ahead, sees_itself])
def test_a_refusal_names_the_line_of_the_users_code(body):
    lines, first = inspect.getsourcelines(body)
    expected = first + next(k for k, line in enumerate(lines) if "# refused" in line)
    with pytest.raises(NotTraceable, match=rf"layer '.*\(test_refusals.py, line {expected}\)$") as refused:
        genkernels.fast_sampler(Net(body), levels=4, in_channels=1)
    assert refused.value.line == f"test_refusals.py, line {expected}"


def test_a_layer_of_this_package_or_of_pytorch_is_named_by_the_line_that_calls_it():
    with pytest.raises(NotTraceable, match=r"layer 'conv'.*sampler_nets.py"):  # Plain's own forward
        genkernels.fast_sampler(Net(lambda net, x: net.conv(x), "B"), levels=4, in_channels=1)
