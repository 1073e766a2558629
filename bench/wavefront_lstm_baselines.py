"""Row LSTM and Diagonal LSTM as public code has them: loops over rows or skewed columns in plain PyTorch.

A skew and its inverse are one padding and a change of shape each, the quickest way there is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Step = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # gates, h, c, Conv1d weight -> h, c


def cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def skewed_step(gates: Tensor, h: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return cell(gates + F.conv1d(F.pad(h, (1, 0)), state), c)


def row_step(gates: Tensor, h: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return cell(gates + F.conv1d(h, state, padding=1), c)


def skew(image: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H, H + W - 1]: row r moved r places to the right."""
    height, columns = image.shape[2], sum(image.shape[2:]) - 1
    return F.pad(image, (0, height)).flatten(2)[:, :, : height * columns].unflatten(2, (height, columns))


def unskew(skewed: Tensor, width: int) -> Tensor:
    height, columns = skewed.shape[2:]
    return F.pad(skewed.flatten(2), (0, height)).unflatten(2, (height, columns + 1))[:, :, :, :width]


def both(left: Tensor, right: Tensor) -> Tensor:
    """The sum of both directions: that from the right is turned back, and moved down one row."""
    return left + F.pad(right.flip(3)[:, :, :-1], (0, 0, 1, 0))


def skewed_columns(gates: Tensor, state: Tensor, step: Step = skewed_step) -> Tensor:
    """Gates [N, 4h, H, W] -> h [N, h, H, W], a Conv1d of two taps for every column of the skewed image."""
    skewed = skew(gates)
    h = c = gates.new_zeros(gates.shape[0], state.shape[1], gates.shape[2])
    states = []
    for k in range(skewed.shape[3]):
        h, c = step(skewed[:, :, :, k], h, c, state)
        states.append(h)
    return unskew(torch.stack(states, 3), gates.shape[3])


def skewed_loop(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, step: Step = skewed_step) -> Tensor:
    """One direction of a Diagonal LSTM layer: a 1x1 convolution, then a Conv1d for every skewed column."""
    return skewed_columns(F.conv2d(x, weight, bias), state, step)


def row_loop(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, step: Step = row_step) -> Tensor:
    """As public code has it: a masked 1x3 convolution, then a Conv1d of three taps for every row."""
    mask = weight.new_tensor([1.0, 1.0, 0.0])
    gates = F.conv2d(x, weight * mask, bias, padding=(0, 1))
    h = c = x.new_zeros(x.shape[0], state.shape[1], x.shape[3])
    rows = []
    for k in range(x.shape[2]):
        h, c = step(gates[:, :, k], h, c, state)
        rows.append(h)
    return torch.stack(rows, 2)


def public_loop(left: Tensor, right: Tensor, weight_left: Tensor, weight_right: Tensor) -> Tensor:
    """As public code has it: one direction after the other, a Conv1d of two taps for every column."""
    results = []
    for gates, weight in ((left, weight_left), (right.flip(3), weight_right)):
        state = weight.flip(0).permute(1, 2, 0)  # taps 0, -1 -> [4h, h, (row above, own row)]
        results.append(skewed_columns(gates, state))
    return both(*results)


def fused_loop(left: Tensor, right: Tensor, weight_left: Tensor, weight_right: Tensor) -> Tensor:
    """What careful code in PyTorch can do: one batched product a step, for both directions and both taps."""
    batch, _, height, width = left.shape
    skewed = skew(torch.cat([left, right.flip(3)]))  # [2N, 4h, H, columns]
    columns = skewed.permute(3, 0, 2, 1).unflatten(1, (2, -1)).flatten(2, 3).contiguous()  # [columns, 2, N H, 4h]
    matrix = torch.stack([weight_left, weight_right]).permute(0, 1, 3, 2).flatten(1, 2)  # [2, taps h, 4h]
    hidden = weight_left.shape[2]
    h = c = left.new_zeros(2, batch * height, hidden)
    states = []
    for column in columns:
        above = F.pad(h.unflatten(1, (batch, height)), (0, 0, 1, 0))[:, :, :height].flatten(1, 2)
        i, f, g, o = torch.baddbmm(column, torch.cat([h, above], 2), matrix).chunk(4, 2)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append(h)
    image = torch.stack(states, 3).unflatten(1, (batch, height)).permute(0, 1, 3, 2, 4)  # [2, N, h, H, columns]
    return both(*unskew(image.flatten(0, 1), width).chunk(2))
