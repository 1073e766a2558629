"""A small causal model around a function of its features, for tests of what the sampler follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import genkernels
from genkernels import sampling
from genkernels.sampling.program.program import Program
from helpers.sampler_cases import logits_from_poisoned_memory, random_images
from helpers.sampler_exact import assert_exact_on_every_executor
from helpers.sampler_nets import Plain

WIDTH, LEVELS = 6, 4
Body = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Causal features [N, WIDTH, H, W] of a grey image, what ``body`` makes of them, and the logits."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = body
        self.first, self.second = Plain("A", 1, WIDTH, 3, padding=1), Plain("B", WIDTH, WIDTH, 3, padding=1)
        self.out = nn.Conv2d(WIDTH, LEVELS, 1)
        self.norm, self.rms = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.prelu, self.prelu_of_one = nn.PReLU(WIDTH), nn.PReLU()
        self.gate, self.wide = nn.Conv2d(WIDTH, 1, 1), nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.drop = nn.Dropout2d(0.5)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(WIDTH, WIDTH, 1))
        self.gain, self.shift = nn.Parameter(torch.empty(WIDTH)), nn.Parameter(torch.empty(WIDTH))
        self.matrix, self.blocks = nn.Parameter(torch.empty(WIDTH, WIDTH)), nn.Parameter(torch.empty(2, 3, 3))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.6)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.second(self.body(self, self.first(x))))
        return logits


def channels_last(function: Body) -> Body:
    """A function of [N, H, W, C] as one of [N, C, H, W]."""
    return lambda net, y: function(net, y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def program_of(body: Body) -> Program:
    return genkernels.fast_sampler(Net(body), levels=LEVELS, in_channels=1).compile(2, (4, 5))


def compile_without_running(body: Body) -> Program:
    """The program for images of 6 x 7, of a model that PyTorch may be unable to run."""
    net, table = Net(body), torch.linspace(0, 1, LEVELS)
    return sampling.compile_program(net, lambda x, _: net(x), (2, 1, 6, 7), table)


def assert_followed(body: Body) -> None:
    """Levels are those of the loop on every executor, and logits the model's own."""
    net = Net(body)
    fast = genkernels.fast_sampler(net, levels=LEVELS, in_channels=1)
    drawn = assert_exact_on_every_executor(fast, 3, (3, 4))
    assert len(drawn.unique()) > 1
    program, images = fast.compile(3, (3, 4)), random_images(3, (1, 3, 4), LEVELS)
    with torch.no_grad():
        exact = net.double()(fast.table()[images.long()]).unsqueeze(2)
        theirs = net.float()(fast.table()[images.long()]).unsqueeze(2)
    allowed = 4 * (theirs - exact).abs().max() + 2e-6 * exact.abs().max()
    for logits in (sampling.teacher_forced(program, images, "cpu"), logits_from_poisoned_memory(program, images)):
        assert (logits - exact).abs().max() <= allowed
