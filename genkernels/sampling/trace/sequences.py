"""Sequences whose first dimension is that of the tokens and the second that of the images, as PyTorch's transformers
take them by default: whatever is done to [T, N, C] is done to [N, T, C] instead.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .graph import NotTraceable
from .operators import OPERATORS
from .tensor import Pending, Traced
from .tracer import POINTWISE, Tracer

_LAYERS = "native_layer_norm clone detach alias contiguous _to_copy mm addmm"
_ROW_BY_ROW = {f"aten::{name}" for name in _LAYERS.split()}
_VIEWS = {"aten::view", "aten::_unsafe_view", "aten::reshape"}


class SequenceFirst(Pending):
    """[T, N, C] of ``images`` [N, T, C]."""

    images: Tensor

    what = (
        "a sequence whose second dimension is that of the images, which the sampler follows through functions, linear "
        "layers, layer norm and nn.MultiheadAttention; keep the images first (batch_first=True)"
    )

    def follow(self, tracer: Tracer, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return _followed(tracer, self, func, args, kwargs)


class SequenceRows(SequenceFirst):
    """[T * N, C] of ``images`` [N * T, C]."""


@OPERATORS.handles("sequence_first")
def sequence_first(tracer: Tracer, images: Tensor) -> SequenceFirst:
    turned = SequenceFirst(tracer, (images.shape[1], images.shape[0], *images.shape[2:]), dtype=images.dtype)
    turned.images = images
    return turned


def _rows(tracer: Tracer, images: Tensor) -> SequenceRows:
    rows = SequenceRows(tracer, images.shape, dtype=images.dtype)
    rows.images = images
    return rows


def _followed(tracer: Tracer, x: SequenceFirst, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, first = tracer.operator, args[0]
    refused = NotTraceable(f"layer {tracer.name()!r}: {name} of {x.what}")
    wrap = _rows if isinstance(x, SequenceRows) else sequence_first
    if name in ("aten::transpose", "aten::permute") and first is x and not isinstance(x, SequenceRows):
        order = tracer.order(x.dim(), *args[1:])
        if order[0] == 1:
            return x.images.permute([{0: 1, 1: 0}.get(d, d) for d in order])
    elif name in _VIEWS and first is x:
        return _viewed(tracer, x, list(args[1]), refused)
    elif name == "aten::slice" and first is x and not isinstance(x, SequenceRows):
        dim = {0: 1, 1: 0}.get(args[1] % x.dim(), args[1] % x.dim())
        return sequence_first(tracer, func(x.images, dim, *args[2:]))
    elif name == "aten::cat":
        dim = {0: 1, 1: 0}.get((args[1] if len(args) > 1 else 0) % x.dim(), 2)
        return sequence_first(tracer, func([_turned(part) for part in first], dim))
    elif name in _ROW_BY_ROW or name in POINTWISE or name.removesuffix("_") in POINTWISE:
        linear = name in ("aten::mm", "aten::addmm")
        moved = [_turned(a, keep=linear) for a in args]
        result = func(*moved, **kwargs)
        if isinstance(result, tuple):
            return (wrap(tracer, result[0]), *result[1:])
        if name.endswith("_"):
            return first
        return wrap(tracer, result)
    raise refused


def _turned(a: Any, keep: bool = False) -> Any:
    """An argument as it meets [N, T, C]; of constants those that broadcast to [T, N, C], not matrices (``keep``)."""
    if isinstance(a, SequenceFirst):
        return a.images
    if not isinstance(a, Tensor) or isinstance(a, Traced) or keep or a.dim() < 2:
        return a
    return a.unsqueeze(1) if a.dim() == 2 else a.transpose(0, 1)


def _viewed(tracer: Tracer, x: SequenceFirst, shape: list[int], refused: NotTraceable) -> SequenceFirst:
    known = [size for size in shape if size != -1]
    if -1 in shape:
        missing = x.numel()
        for size in known:
            missing //= size
        shape = [missing if size == -1 else size for size in shape]
    if isinstance(x, SequenceRows):
        tokens, images = shape[0], x.images.shape[0] // shape[0]
        if len(shape) > 2 and shape[1] == images:
            return sequence_first(tracer, x.images.view(images, tokens, *shape[2:]))
        raise refused
    tokens, images = x.shape[:2]
    if shape[:2] == [tokens, images]:
        return sequence_first(tracer, x.images.reshape(images, tokens, *shape[2:]))
    if shape[0] == tokens * images:
        return _rows(tracer, x.images.reshape(shape))
    raise refused
