"""The recurrence written down pixel by pixel, in NumPy and in plain PyTorch, and the sweeps that the tests use.

Nothing here is taken from the code under test.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genkernels.ops import diagonal_lstm, row_lstm


@dataclass(frozen=True)
class Sweep:
    """A way over the image, with the offsets (dy, dx) of its taps and of c written out by hand."""

    front: str
    taps: tuple[int, ...]
    mirrored: bool
    offsets: tuple[tuple[int, int], ...]
    cell: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.front}{','.join(map(str, self.taps))}{'-mirrored' if self.mirrored else ''}"

    def __call__(self, gates: Tensor, weight: Tensor, h0=None, c0=None, *, checkpoint: bool = False) -> Tensor:
        options = {"taps": self.taps, "checkpoint": checkpoint}
        if self.front == "row":
            return row_lstm(gates, weight, h0, c0, **options)
        return diagonal_lstm(gates, weight, h0, c0, mirrored=self.mirrored, **options)

    def order(self, height: int, width: int) -> list[tuple[int, int]]:
        """The pixels, each after all that it reads: row by row will do, from the sweep's own side."""
        columns = range(width)
        return list(itertools.product(range(height), reversed(columns) if self.mirrored else columns))


ROW = Sweep("row", (-1, 0, 1), False, ((-1, -1), (-1, 0), (-1, 1)), (-1, 0))
DIAGONAL = Sweep("diagonal", (0, -1), False, ((0, -1), (-1, 0)), (0, -1))
MIRRORED = Sweep("diagonal", (0, -1), True, ((0, 1), (-1, 0)), (0, 1))
SWEEPS = (ROW, DIAGONAL, MIRRORED)
OTHER_TAPS = (
    Sweep("row", (0,), False, ((-1, 0),), (-1, 0)),
    Sweep("row", (3, -2), False, ((-1, 3), (-1, -2)), (-1, 0)),
    Sweep("row", (-2, -1, 0, 1, 2), False, ((-1, -2), (-1, -1), (-1, 0), (-1, 1), (-1, 2)), (-1, 0)),
    Sweep("diagonal", (0,), False, ((0, -1),), (0, -1)),
    Sweep("diagonal", (-1,), False, ((-1, 0),), (0, -1)),
    Sweep("diagonal", (-2, 0, -1), False, ((-2, 1), (0, -1), (-1, 0)), (0, -1)),
    Sweep("diagonal", (0, -1, -3), True, ((0, 1), (-1, 0), (-3, -2)), (0, 1)),
)
SIZES = ((3, 4), (5, 2), (1, 6), (6, 1), (1, 1))


def numpy_sweep(gates, weight, h0, c0, sweep: Sweep) -> np.ndarray:
    """h of every pixel, float64: gates [N, 4h, H, W], weight [taps, 4h, h] -> [N, h, H, W]."""
    batch, channels, height, width = gates.shape
    units = channels // 4
    h, c = np.zeros((2, batch, units, height, width))
    for n in range(batch):
        for y, x in sweep.order(height, width):

            def at(values, initial, offset, n=n, y=y, x=x):
                p, q = y + offset[0], x + offset[1]
                return values[n, :, p, q] if 0 <= p < height and 0 <= q < width else initial

            before = gates[n, :, y, x].copy()
            for tap, offset in enumerate(sweep.offsets):
                before += weight[tap] @ at(h, h0, offset)
            i, f, o = (1 / (1 + np.exp(-before[k * units : (k + 1) * units])) for k in (0, 1, 3))
            g = np.tanh(before[2 * units : 3 * units])
            c[n, :, y, x] = f * at(c, c0, sweep.cell) + i * g
            h[n, :, y, x] = o * np.tanh(c[n, :, y, x])
    return h


def plain_sweep(gates: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, sweep: Sweep) -> Tensor:
    """The same in PyTorch's own operators, whose derivatives need no proof, in the dtype of gates."""
    if gates.dim() == 3:
        return plain_sweep(gates.unsqueeze(0), weight, h0, c0, sweep).squeeze(0)
    batch, channels, height, width = gates.shape
    units = channels // 4
    outside = [gates.new_zeros(units) if state is None else state for state in (h0, c0)]
    h: dict[tuple[int, int], Tensor] = {}
    c: dict[tuple[int, int], Tensor] = {}
    for y, x in sweep.order(height, width):
        before = gates[:, :, y, x]
        for matrix, (dy, dx) in zip(weight.unbind(0), sweep.offsets, strict=True):
            before = before + h.get((y + dy, x + dx), outside[0].expand(batch, units)) @ matrix.t()
        i, f, g, o = before.chunk(4, 1)
        carried = c.get((y + sweep.cell[0], x + sweep.cell[1]), outside[1])
        c[y, x] = f.sigmoid() * carried + i.sigmoid() * g.tanh()
        h[y, x] = o.sigmoid() * c[y, x].tanh()
    if not h:
        return gates.new_zeros(batch, units, height, width) + 0 * gates[:, :units]
    rows = [torch.stack([h[y, x] for x in range(width)], -1) for y in range(height)]
    return torch.stack(rows, -2)


def bilstm_inputs(
    size: tuple[int, int], *, batch: int = 2, units: int = 3, dtype=torch.float64, seed: int = 0
) -> list[Tensor]:
    """What ``diagonal_bilstm`` takes: gates, weights, and four initial states."""
    first, second = (inputs_for(size, DIAGONAL, batch=batch, units=units, dtype=dtype, seed=seed + k) for k in range(2))
    return [first[0], second[0], first[1], second[1], *first[2:], *second[2:]]


def plain_bilstm(left, right, weight_left, weight_right, h0_left, c0_left, h0_right, c0_right) -> Tensor:
    """The two sweeps and their sum, the second one row lower."""
    first = plain_sweep(left, weight_left, h0_left, c0_left, DIAGONAL)
    second = plain_sweep(right, weight_right, h0_right, c0_right, MIRRORED)
    return first + torch.cat([torch.zeros_like(second[..., :1, :]), second[..., :-1, :]], -2)


def inputs_for(
    size: tuple[int, int],
    sweep: Sweep = DIAGONAL,
    *,
    batch: int = 2,
    units: int = 3,
    dtype=torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """gates [batch, 4 units, *size], weight, h0, c0, of a size at which no gate is shut."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, 4 * units, *size), (len(sweep.taps), 4 * units, units), (units,), (units,)
    gates, weight, *states = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return [t.to(dtype) for t in (gates, weight / (len(sweep.taps) * units) ** 0.5, *states)]


def rounded_inputs(
    size: tuple[int, int], sweep: Sweep | None, dtype: torch.dtype, *, batch: int, units: int, states: bool
) -> tuple[list[Tensor | None], Tensor]:
    """What the function takes (both directions without a sweep), and a gradient of its result.

    Float64 that holds values of dtype; without states, None stands for each of them.
    """
    make = {"batch": batch, "units": units, "dtype": torch.float64}
    inputs = bilstm_inputs(size, **make) if sweep is None else inputs_for(size, sweep, **make)
    grad = torch.randn(batch, units, *size, generator=torch.Generator().manual_seed(9)).double()
    *kept, grad = [t.to(dtype).double() for t in (*inputs, grad)]
    return [None if t.dim() == 1 and not states else t for t in kept], grad


def with_gradients(function, inputs: Sequence[Tensor | None], grad_output: Tensor) -> tuple[Tensor, ...]:
    """The result and the gradients of those inputs that are there."""
    inputs = [t if t is None else t.detach().requires_grad_() for t in inputs]
    y = function(*inputs)
    leaves = [t for t in inputs if t is not None]
    return y.detach(), *torch.autograd.grad(y, leaves, grad_output, allow_unused=True, materialize_grads=True)
