"""The operators' signatures and the shapes of what they return; kernels are registered by op.py.

    genkernels::wavefront_layer                x, parameters -> hidden, saved
    genkernels::wavefront_layer_backward       grad_hidden, x, parameters, saved -> gradients of x and parameters
    genkernels::wavefront_layer_pair           two walks over diagonals and their sum, the mirrored one a row lower
    genkernels::wavefront_layer_pair_backward

The parameters of a walk are input_weight [4h, C, kh, kw], input_bias [4h], weight [taps, 4h, h], h0 and c0 [h].
``saved`` is that of genkernels::wavefront_lstm, or [0] without ``keep``: then backward computes it again.
``needs`` says which gradients are wanted; the others come back empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.layout import empty_grad_input, output_format
from ..geometry import Geometry
from ..schema import accumulator

PARAMETERS = ("input_weight", "input_bias", "weight", "h0", "c0")  # of one walk
NAMES = {1: "wavefront_layer", 2: "wavefront_layer_pair"}  # by the number of walks

_OPTIONAL = ("input_bias", "h0", "c0")
_OPTIONS = "str mask_type, str front, int[] taps"

library = torch.library.Library("genkernels", "FRAGMENT")
for _count, _name in NAMES.items():
    _suffixes = [""] if _count == 1 else [f"_{walk}" for walk in range(_count)]
    _inputs = "Tensor x, " + ", ".join(
        f"Tensor{'?' if kind in _OPTIONAL else ''} {kind}{suffix}" for suffix in _suffixes for kind in PARAMETERS
    )
    _tensors = 1 + _count * len(PARAMETERS)
    library.define(f"{_name}({_inputs}, {_OPTIONS}, bool keep) -> (Tensor, Tensor)")
    library.define(
        f"{_name}_backward(Tensor grad_hidden, {_inputs}, Tensor saved, {_OPTIONS}, bool[{_tensors}] needs)"
        f" -> ({', '.join(['Tensor'] * _tensors)})"
    )
forward_ops = {count: getattr(torch.ops.genkernels, name).default for count, name in NAMES.items()}
backward_ops = {count: getattr(torch.ops.genkernels, f"{name}_backward").default for count, name in NAMES.items()}


def by_walk(values: Sequence[Any]) -> list[Any]:
    """The parameters of each walk, or what belongs to them, cut out of a flat list."""
    return [values[first : first + len(PARAMETERS)] for first in range(0, len(values), len(PARAMETERS))]


def geometries(count: int, front: str, taps: Sequence[int]) -> list[Geometry]:
    """The geometry of each walk: of two, the second is mirrored."""
    return [Geometry.of(front, taps, mirrored) for mirrored in (False, True)[:count]]


# --- what comes back -------------------------------------------------------------------------------------------


def empty_hidden(x: Tensor, input_weight: Tensor) -> Tensor:
    """The result, [N, h, H, W], not yet written: in the dtype and layout of what the convolution gives."""
    shape = (x.shape[0], input_weight.shape[0] // 4, x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=output_format(x, input_weight))


def empty_saved(x: Tensor, input_weight: Tensor, count: int, keep: bool) -> Tensor:
    """The buffer for backward, [walks, N, H * W * 5h] of the accumulator's dtype, not yet written; or [0]."""
    batch, _, height, width = x.shape
    shape = (count, batch, height * width * (input_weight.shape[0] // 4) * 5) if keep else (0,)
    return x.new_empty(shape, dtype=accumulator(x.dtype))


def empty_grads(tensors: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor]:
    """The gradients of x and all parameters, not yet written; [0] where none is wanted."""
    x = tensors[0]
    assert x is not None
    grads = [
        torch.empty_like(value, memory_format=torch.contiguous_format) if need and value is not None else x.new_empty(0)
        for value, need in zip(tensors, needs, strict=True)
    ]
    if needs[0]:
        grads[0] = empty_grad_input(x)
    return grads
