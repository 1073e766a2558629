"""Operators that move elements and compute nothing: views, slices, permutations, concatenations, padding with zeros."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...ops.core.torch_internals import tree_flatten, tree_map
from .graph import NotTraceable
from .recording import Recording
from .tensor import Traced
from .view import Plane

_REARRANGING = """
    slice select narrow view _unsafe_view reshape permute transpose t unsqueeze squeeze expand cat stack split
    split_with_sizes unbind chunk constant_pad_nd clone alias detach contiguous index index_select unflatten movedim
    swapaxes repeat lift_fresh view_as flatten
"""
REARRANGING = {f"aten::{name}" for name in _REARRANGING.split()}
TAKE_INDICES = {"aten::index", "aten::index_select"}
FOLDING = {"aten::view", "aten::_unsafe_view", "aten::reshape", "aten::clone", "aten::detach", "aten::alias"}
TAKE_SIZES = {"aten::view", "aten::_unsafe_view", "aten::reshape", "aten::expand"}


def quickly(tracer: Recording, name: str, x: Any, *args: Any) -> Any:
    """Common operators without indices, which are slow where images are large; None for all others."""
    if not isinstance(x, Traced) or x.dim() != 4:
        return None
    try:
        x.as_plane()
    except NotTraceable:  # tokens of several heads, say
        return None
    batch, channels, height, width = x.shape
    sizes = (batch, channels, height, width)
    results: list[Plane] = []
    if name == "aten::expand" and channels == 1 != args[0][1] and _only_channels(args[0], sizes):
        results = [x.as_plane().repeated(args[0][1])]
    elif name == "aten::split" and len(args) == 2 and args[1] in (1, -3):
        starts = range(0, channels, args[0])
        results = [x.as_plane().taken(start, min(start + args[0], channels)) for start in starts]
    elif name == "aten::constant_pad_nd" and len(args[0]) <= 4 and args[1:] in ((), (0,)):
        results = [x.as_plane().padded(*args[0])]
    elif name == "aten::slice" and len(args) == 3:
        dim = args[0] % 4
        start, stop, _ = slice(*args[1:]).indices(sizes[dim])
        if dim == 1:
            results = [x.as_plane().taken(start, stop)]
        elif dim > 1:
            crop = (-start, stop - sizes[dim])
            results = [x.as_plane().padded(*(crop if dim == 3 else (0, 0, *crop)))]
    if not results or any(min(p.channels, p.height, p.width) < 1 for p in results):
        return None
    if name == "aten::constant_pad_nd":
        (p,) = results
        return Traced(tracer, (batch, p.channels, p.height, p.width), plane=p, dtype=x.dtype)
    strides = x.stride() if name != "aten::expand" else (x.stride(0), 0, *x.stride()[2:])
    made = [
        Traced(tracer, (batch, p.channels, p.height, p.width), plane=p, strides=strides, dtype=x.dtype) for p in results
    ]
    for k, traced in enumerate(made):
        if name == "aten::expand":
            traced.views(x, lambda p=results[0]: x.as_index().expand(1, p.channels, -1, -1))  # type: ignore[misc]
        elif name == "aten::split":
            traced.views(x, lambda k=k: x.as_index().split(args[0], 1)[k])  # type: ignore[misc]
        else:
            traced.views(x, lambda: x.as_index()[(slice(None),) * dim + (slice(*args[1:]),)])
    return made if name == "aten::split" else made[0]


def rearrange(tracer: Recording, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Carries the operator out on the indices; the true shapes come from PyTorch's meta device."""
    shapes = func(*tree_map(meta, args), **tree_map(meta, kwargs))
    sources = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Traced)]
    folded = sources[0].as_index().shape[0]
    batch = sources[0].shape[0] // folded

    def as_index(a: Any) -> Any:
        if isinstance(a, Traced):
            return a.as_index()
        if isinstance(a, Tensor) and tracer.operator not in TAKE_INDICES:
            return tracer.constant(a).as_index()
        return a.cpu() if isinstance(a, Tensor) else a

    several = not isinstance(shapes, Tensor)
    moves = NotTraceable(
        f"layer {tracer.name()!r}: {tracer.operator} mixes the images of a batch, or moves them from the first "
        "dimension"
    )
    folds = tracer.operator in FOLDING  # rows stay in order, so those of an image stay together
    if any(not shape.dim() or shape.shape[0] % batch for shape in (shapes if several else [shapes])):
        raise moves
    if not folds and any(s.shape[0] != batch * folded for s in (shapes if several else [shapes])):
        raise moves
    if tracer.operator in TAKE_SIZES and args[1][0] > 0:
        args = (args[0], [args[1][0] // batch, *args[1][1:]], *args[2:])

    def carry_out() -> Any:
        return func(*tree_map(as_index, args), **tree_map(as_index, kwargs))

    def wrap(index: Tensor, shape: Tensor, viewed: Callable[[], Tensor]) -> Traced:
        if index.shape != (shape.shape[0] // batch, *shape.shape[1:]):
            raise moves
        result = Traced(tracer, shape.shape, index=index, strides=shape.stride(), dtype=shape.dtype)
        if index.untyped_storage().data_ptr() == sources[0].as_index().untyped_storage().data_ptr():
            result.views(sources[0], viewed)
        return result

    try:
        indices = carry_out()
    except RuntimeError as error:  # what the whole batch can do, and an image of it alone cannot
        raise moves from error
    if not several:
        return wrap(indices, shapes, carry_out)
    return [
        wrap(index, shape, lambda k=k: carry_out()[k])  # type: ignore[misc]
        for k, (index, shape) in enumerate(zip(indices, shapes, strict=True))
    ]


def _only_channels(sizes: Sequence[int], old: Sequence[int]) -> bool:
    """Whether an expansion of [N, 1, H, W] leaves all but the channels as they are."""
    return len(sizes) == 4 and sizes[1] > 0 and all(sizes[k] in (-1, old[k]) for k in (0, 2, 3))


def meta(a: Any) -> Any:
    if not isinstance(a, Tensor):
        return a
    return torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="meta")
