"""The operators' signatures and the shapes of what they return; kernels are registered by op.py.

    genkernels::wavefront_lstm                  gates, weight, h0, c0 -> hidden, saved
    genkernels::wavefront_lstm_backward         grad_hidden, gates, weight, h0, c0, saved -> four gradients
    genkernels::wavefront_lstm_pair             two walks over images of one shape, side by side
    genkernels::wavefront_lstm_pair_backward

``keep`` says whether ``saved`` is wanted: the gates after their sigmoid or tanh and the cells c, 5h numbers a pixel,
image by image in an order that is the kernel's own business. Without it ``saved`` is empty and backward walks
forward once more.
``needs`` says which gradients are wanted; the others come back empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.layout import input_format


def _walks(count: int, tensors: str) -> str:
    """The arguments of `count` walks, numbered where there are two."""
    suffixes = [""] if count == 1 else [f"_{walk}" for walk in range(count)]
    return ", ".join(f"{kind}{suffix}" for suffix in suffixes for kind in tensors.split(", "))


_GEOMETRY = "str front, int[] taps, bool[] mirrored"
_INPUTS = "Tensor gates, Tensor weight, Tensor? h0, Tensor? c0"

NAMES = {1: "wavefront_lstm", 2: "wavefront_lstm_pair"}  # by the number of walks

library = torch.library.Library("genkernels", "FRAGMENT")
for _count, _name in NAMES.items():
    library.define(
        f"{_name}({_walks(_count, _INPUTS)}, {_GEOMETRY}, bool keep) -> ({', '.join(['Tensor'] * (_count + 1))})"
    )
    library.define(
        f"{_name}_backward({_walks(_count, 'Tensor grad_hidden, ' + _INPUTS)}, Tensor saved, "
        f"{_GEOMETRY}, bool[{4 * _count}] needs) -> ({', '.join(['Tensor'] * 4 * _count)})"
    )
forward_ops = {count: getattr(torch.ops.genkernels, name).default for count, name in NAMES.items()}
backward_ops = {count: getattr(torch.ops.genkernels, f"{name}_backward").default for count, name in NAMES.items()}


# --- what comes back -------------------------------------------------------------------------------------------


def empty_hidden(gates: Tensor) -> Tensor:
    """h of every pixel, not yet written: gates [N, 4h, H, W] -> [N, h, H, W] in their dtype and layout."""
    batch, channels, height, width = gates.shape
    shape = (batch, channels // 4, height, width)
    return torch.empty(shape, dtype=gates.dtype, device=gates.device, memory_format=input_format(gates))


def empty_saved(gates: Sequence[Tensor], keep: bool) -> Tensor:
    """The buffer for backward, [walks, N, H * W * 5h] of the accumulator's dtype, not yet written; or [0]."""
    batch, channels, height, width = gates[0].shape
    shape = (len(gates), batch, height * width * channels // 4 * 5) if keep else (0,)
    return gates[0].new_empty(shape, dtype=accumulator(gates[0].dtype))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_grads(inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor]:
    """The gradients of gates, weight, h0, c0, not yet written; [0] where none is wanted."""
    gates = inputs[0]
    assert gates is not None
    return [
        torch.empty_like(value, memory_format=input_format(gates) if value is gates else torch.contiguous_format)
        if need and value is not None
        else gates.new_empty(0)
        for value, need in zip(inputs, needs, strict=True)
    ]
