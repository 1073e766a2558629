"""Weights of public PixelRNN versions in our layout: gates in the order i, f, g, o, and one matrix for each tap.

The usual public layer is a Python loop: a ``Conv2d`` gives the input-to-state part of all pixels, then a ``Conv1d``
gives the state-to-state part of one row, or of one column of the skewed map, after another. The kernel index of that
``Conv1d`` is what is called a tap here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .functional import DIAGONAL_TAPS, ROW_TAPS

GATES = "ifgo"
# What each kernel index of the Conv1d stands for; the diagonal's is padded on top, so index 0 is the row above.
_CONV1D_TAPS = {"row": (-1, 0, 1), "diagonal": (-1, 0)}
_OUR_TAPS = {"row": ROW_TAPS, "diagonal": DIAGONAL_TAPS}


def reorder_gates(value: Tensor, gate_order: str) -> Tensor:
    """Blocks of the first dimension, [4h, ...], from any order of the gates to i, f, g, o.

    Args:
        gate_order: the letters i, f, g, o in the order in which value has them; g is the gate with the tanh.

    Raises:
        ValueError: gate_order is not those four letters, or the first dimension is no multiple of four.
    """
    if sorted(gate_order) != sorted(GATES):
        raise ValueError(f"gate_order: expected the letters i, f, g, o in some order; got {gate_order!r}")
    if value.dim() == 0 or value.shape[0] % 4:
        raise ValueError(f"value: expected four gates along the first dimension; got shape {list(value.shape)}")
    blocks = dict(zip(gate_order, value.chunk(4), strict=True))
    return torch.cat([blocks[gate] for gate in GATES])


def state_from_conv1d(weight: Tensor, *, front: str, gate_order: str = GATES) -> Tensor:
    """The state-to-state weight [taps, 4h, h] from that of a ``Conv1d``.

    Args:
        weight: [4h, h, 3] of ``Conv1d(h, 4h, 3, padding=1)`` along a row (front "row"), or [4h, h, 2] of
            ``Conv1d(h, 4h, 2)`` over the rows of a column of the skewed map, padded on top ("diagonal").
        front: "row" or "diagonal".
        gate_order: see :func:`reorder_gates`.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    if front not in _CONV1D_TAPS:
        raise ValueError(f"front: expected 'row' or 'diagonal'; got {front!r}")
    taps = _CONV1D_TAPS[front]
    if weight.dim() != 3 or weight.shape[0] != 4 * weight.shape[1] or weight.shape[2] != len(taps):
        raise ValueError(f"state_weight: expected [4h, h, {len(taps)}]; got shape {list(weight.shape)}")
    ordered = reorder_gates(weight, gate_order)
    return torch.stack([ordered[:, :, taps.index(tap)] for tap in _OUR_TAPS[front]])


def input_from_conv2d(
    weight: Tensor, bias: Tensor | None, state_bias: Tensor | None = None, *, gate_order: str = GATES
) -> tuple[Tensor, Tensor]:
    """The input-to-state weight [4h, in, kh, kw] and bias [4h] from those of a ``Conv2d``.

    Args:
        weight: [4h, in, kh, kw].
        bias: [4h], or None for zeros.
        state_bias: [4h], the bias of the ``Conv1d``, which every step adds too; or None.
        gate_order: see :func:`reorder_gates`.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    total = weight.new_zeros(weight.shape[0])
    for name, value in (("input_bias", bias), ("state_bias", state_bias)):
        if value is None:
            continue
        if value.shape != total.shape:
            raise ValueError(f"{name}: expected [{total.shape[0]}]; got {list(value.shape)}")
        total = total + value
    return reorder_gates(weight, gate_order), reorder_gates(total, gate_order)
