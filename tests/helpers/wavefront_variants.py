"""The Diagonal BiLSTM as public code writes it, a Python loop over the columns of a skewed map: once right, and in the
ways in which public versions get it wrong.

Nothing here is taken from the code under test. The weights are in the public layout: gates in the order i, f, g, o,
``Conv1d(h, 4h, 2)`` over the rows of a column.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def skew(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H, H + W - 1], row r moved r places to the right."""
    height = x.shape[2]
    return torch.stack([F.pad(x[:, :, r], (r, height - 1 - r)) for r in range(height)], 2)


def unskew(x: Tensor, width: int) -> Tensor:
    return torch.stack([x[:, :, r, r : r + width] for r in range(x.shape[2])], 2)


def flip(x: Tensor) -> Tensor:
    return x.flip(3)


def shift_down(x: Tensor) -> Tensor:
    return F.pad(x[:, :, :-1], (0, 0, 1, 0))


def loop(gates: Tensor, weight: Tensor, pad: tuple[int, int] = (1, 0)) -> Tensor:
    """Sweep over the columns: gates [N, 4h, H, columns], weight [4h, h, 2] -> [N, h, H, columns]."""
    h = c = gates.new_zeros(gates.shape[0], weight.shape[1], gates.shape[2])
    columns = []
    for k in range(gates.shape[3]):
        i, f, g, o = (gates[..., k] + F.conv1d(F.pad(h, pad), weight)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        columns.append(h)
    return torch.stack(columns, 3)


def sweep(gates: Tensor, weight: Tensor, pad: tuple[int, int] = (1, 0)) -> Tensor:
    return unskew(loop(skew(gates), weight, pad), gates.shape[3])


Weights = tuple[Tensor, Tensor]


def correct(left: Tensor, right: Tensor, weights: Weights) -> Tensor:
    return sweep(left, weights[0]) + shift_down(flip(sweep(flip(right), weights[1])))


def no_row_shift(left: Tensor, right: Tensor, weights: Weights) -> Tensor:
    return sweep(left, weights[0]) + flip(sweep(flip(right), weights[1]))


def last_row_zeroed(left: Tensor, right: Tensor, weights: Weights) -> Tensor:
    from_right = flip(sweep(flip(right), weights[1]))
    return sweep(left, weights[0]) + F.pad(from_right[:, :, :-1], (0, 0, 0, 1))


def padded_on_both_sides(left: Tensor, right: Tensor, weights: Weights) -> Tensor:
    """``Conv1d(..., padding='same')``: an even kernel gets its one zero at the bottom."""
    pad = (0, 1)
    return sweep(left, weights[0], pad) + shift_down(flip(sweep(flip(right), weights[1], pad)))


def not_flipped_back(left: Tensor, right: Tensor, weights: Weights) -> Tensor:
    return sweep(left, weights[0]) + shift_down(sweep(flip(right), weights[1]))


def flipped_after_skewing(left: Tensor, right: Tensor, weights: Weights) -> Tensor:
    from_right = unskew(flip(loop(flip(skew(right)), weights[1])), right.shape[3])
    return sweep(left, weights[0]) + shift_down(from_right)


def one_direction(left: Tensor, right: Tensor, weights: Weights) -> Tensor:
    return sweep(left, weights[0])


# What each of them shows on 7x7, of 1,225 pairs of a pixel and one that it should see (itself among them): future
# pixels reached, past pixels missed.
VARIANTS: dict[Callable[[Tensor, Tensor, Weights], Tensor], tuple[int, int]] = {
    correct: (0, 0),
    no_row_shift: (147, 0),
    last_row_zeroed: (126, 126),
    padded_on_both_sides: (248, 861),
    not_flipped_back: (0, 189),
    flipped_after_skewing: (0, 213),
    one_direction: (0, 441),
}
