"""Operators that look levels up in a table: embeddings, one-hot vectors, tables that are indexed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .graph import LookupNode, NotTraceable
from .operators import OPERATORS
from .places import as_image
from .tensor import Traced
from .tracer import Tracer


def _lookup(tracer: Tracer, table: Tensor, x: Any, dtype: torch.dtype) -> Tensor:
    """Rows [D] of a table for the whole numbers of a tensor [N, ...]: [N, ..., D]."""
    if isinstance(table, Traced) or not isinstance(x, Traced):
        raise NotTraceable(f"layer {tracer.name()!r}: looks up rows of a table that depends on the image")
    if x.dtype.is_floating_point:
        raise NotTraceable(f"layer {tracer.name()!r}: looks up {x.dtype} numbers; expected whole ones")
    if table.dim() == 1:
        return _lookup(tracer, table[:, None], x, dtype).squeeze(-1)
    if x.dim() > 3 and x.ends_in_channels():
        return _lookup(tracer, table, x.movedim(-1, 1), dtype).movedim(1, x.dim() - 1)
    numbers = as_image(tracer, x)
    plane = numbers.as_plane()
    rows = table.detach().to(tracer.device, tracer.dtype).flatten(1)
    width = rows.shape[1]
    node = LookupNode(tracer.name(), plane.channels * width, plane.box, rows, tracer.operand(plane))
    batch, channels, *size = numbers.shape
    found = tracer.result(node, (batch, node.channels, *size)).as_dtype(dtype)
    in_rows = found.view(batch, channels, width, *size).movedim(2, -1)  # [N, C, H, W, D]
    return in_rows.reshape(*x.shape, *table.shape[1:])


@OPERATORS.handles("aten::embedding")
def _embedding(tracer: Tracer, table: Tensor, x: Any, *_: Any) -> Tensor:
    return _lookup(tracer, table, x, table.dtype)


@OPERATORS.handles("one_hot")
def _one_hot(tracer: Tracer, x: Traced, num_classes: int = -1) -> Tensor:
    """As the function ``torch.nn.functional.one_hot``, which looks into the numbers before it becomes operators."""
    if num_classes < 1:
        raise NotTraceable(f"layer {tracer.name()!r}: one_hot without the number of classes")
    return _lookup(tracer, torch.eye(num_classes), x, torch.int64)


@OPERATORS.handles("aten::index.lookup")
def _index(tracer: Tracer, table: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    if any(i is not None and i.dtype == torch.bool for i in indices):
        raise NotTraceable(
            f"layer {tracer.name()!r}: picks elements by truth values that depend on the image, how many is not known; "
            "write it with torch.where"
        )
    if len(indices) != 1:
        raise NotTraceable(f"layer {tracer.name()!r}: indexes a table by more than the image's levels")
    return _lookup(tracer, table, indices[0], table.dtype)


@OPERATORS.handles("aten::index_select.lookup")
def _index_select(tracer: Tracer, table: Tensor, dim: int, x: Any) -> Tensor:
    if dim != 0:
        raise NotTraceable(f"layer {tracer.name()!r}: selects along dimension {dim} by the image's levels")
    return _lookup(tracer, table, x, table.dtype)
