"""Which sub-pixels reach which: seen in a model's Jacobian, and expected from nothing but kernel sizes and
masks.

A pattern is a bool tensor [C, H, W, C, H, W]: ``pattern[c, i, j, d, k, l]`` says that what is predicted for
colour c of pixel (i, j) depends on colour d of pixel (k, l). Sub-pixels are ordered row by row, column by
column, colour by colour.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


@torch.no_grad()
def make_transparent(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter, masked or not, a positive value: no ReLU shuts and no two paths cancel.

    What then shows no derivative has no path. In float64. Returns the model.
    """
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    for parameter in model.parameters():
        values = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5
        parameter.copy_(values / max(parameter[0].numel(), 1))
    return model


def jacobian_pattern(function: Function, shape: Sequence[int], *, scale: float = 1.0, seed: int = 0) -> Tensor:
    """The pattern of a differentiable function [N, D, H, W] -> [N, K, C, H, W] at one positive random image.

    The image is copied once for every sub-pixel of the output, and copy n is differentiated for sub-pixel n,
    its K values weighted by positive random numbers. One forward and one backward pass in float64.

    Args:
        function: a model, made transparent where every path is to be seen.
        shape: (D, H, W) of the input.
        scale: the largest value in the image.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, *shape, generator=generator, dtype=torch.float64) * scale
    with torch.no_grad():
        outputs = function(image).shape[2:]
    count = outputs.numel()
    x = image.repeat(count, 1, 1, 1).requires_grad_()
    logits = function(x)  # [count, K, C, H, W]
    weights = torch.rand(logits.shape[1], generator=generator, dtype=torch.float64) + 0.5
    own = torch.eye(count, dtype=torch.float64).view(count, 1, *outputs)
    (gradient,) = torch.autograd.grad(logits, x, own * weights.view(1, -1, 1, 1, 1))
    return (gradient != 0).view(*outputs, *shape)


def colours_of_features(function: Function, groups: int) -> Function:
    """A layer [N, D, H, W] -> [N, F, H, W] as one that :func:`jacobian_pattern` takes: F summed per colour.

    Feature f belongs to colour ``f * groups // F``.
    """

    def by_colour(x: Tensor) -> Tensor:
        features = function(x)
        colour = torch.arange(features.shape[1]) * groups // features.shape[1]
        return torch.stack([features[:, colour == c].sum(1) for c in range(groups)], 1).unsqueeze(1)

    return by_colour


def past(colours: int, height: int, width: int) -> Tensor:
    """The pattern of a model that sees everything before a sub-pixel and nothing else."""
    order = torch.arange(height * width * colours).view(height, width, colours).permute(2, 0, 1)
    return order[:, :, :, None, None, None] > order


Layer = tuple[int, str]


def reachable(layers: Sequence[Layer], colours: int, height: int, width: int) -> Tensor:
    """The pattern of a stack of masked convolutions, by walking from tap to tap.

    Args:
        layers: (kernel size, "A" or "B") of each, from the input up.
    """
    pattern = torch.zeros(colours, height, width, colours, height, width, dtype=torch.bool)
    for start in itertools.product(range(colours), range(height), range(width)):
        seen = {start}
        for size, mask_type in reversed(layers):
            seen = {
                (d, i + di, j + dj)
                for c, i, j in seen
                for d, di, dj in _taps(c, size, mask_type, colours)
                if 0 <= i + di < height and 0 <= j + dj < width
            }
        for node in seen:
            pattern[(*start, *node)] = True
    return pattern


def _taps(colour: int, size: int, mask_type: str, colours: int) -> list[tuple[int, int, int]]:
    """(colour, row offset, column offset) of what one layer reads for one colour of its output."""
    half = size // 2
    before = [(-r, c) for r in range(1, half + 1) for c in range(-half, half + 1)]
    before += [(0, -c) for c in range(1, half + 1)]
    taps = [(d, r, c) for r, c in before for d in range(colours)]
    return taps + [(d, 0, 0) for d in range(colours) if d < colour or (d == colour and mask_type == "B")]


def future_reached(pattern: Tensor) -> int:
    """Pairs in which a sub-pixel reaches itself or a later one: 0 in a causal model."""
    return int((pattern & ~past(*pattern.shape[:3])).sum())


def past_missed(pattern: Tensor) -> int:
    """Pairs in which a sub-pixel does not reach an earlier one: its blind spot."""
    return int((past(*pattern.shape[:3]) & ~pattern).sum())
