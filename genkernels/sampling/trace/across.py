"""Operators across the channels of a pixel: softmax, layer norm, sums, means, maxima."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..program.instructions import REDUCE, Function
from .graph import AcrossNode, Link, NotTraceable, PointNode
from .operators import OPERATORS
from .tensor import Traced
from .tracer import Tracer
from .view import Plane


def across(tracer: Tracer, x: Any, dims: Sequence[int] | int | None, function: Function, keep: bool = True) -> Tensor:
    """A function of ACROSS or REDUCE over dimensions of a tensor, all of them channels; ``keep``: as size 1."""
    operator, rank = tracer.operator, x.dim()
    given = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    over = sorted({d % rank for d in given})
    if 0 in over:
        raise NotTraceable(
            f"layer {tracer.name()!r}: {operator} over {_words(over)} of {list(x.shape)} mixes the images of a batch"
        )
    for view, reduced, pixel in _views(tracer, x, over):
        others = [d for d in range(1, view.dim()) if d not in (*reduced, *pixel)]
        order = [0, *others, *reduced, *pixel]
        moved = view.permute(order)  # [N, groups, channels of a group, H, W]
        try:
            plane = moved.as_plane()
        except NotTraceable:
            continue
        tracer.operator = operator
        sizes = [moved.shape[order.index(d)] for d in reduced]
        left = [1] * len(sizes) if function.name in REDUCE else sizes
        node = _node(tracer, plane, function, math.prod(sizes))
        shape = (moved.shape[0], *moved.shape[1 : 1 + len(others)], *left, *moved.shape[-2:])
        result = tracer.result(node, shape).permute([order.index(d) for d in range(view.dim())])
        kept = [size for d, size in enumerate(x.shape) if d not in over or function.name not in REDUCE]
        whole = [1 if d in over and function.name in REDUCE else size for d, size in enumerate(x.shape)]
        return result.reshape(whole if keep else kept)
    tracer.operator = operator
    raise NotTraceable(
        f"layer {tracer.name()!r}: {operator} over {_words(over)} of {list(x.shape)} mixes pixels; the sampler follows "
        "it across the channels of a pixel, dimension 1 of [N, C, H, W] or the last of [N, H, W, C]"
    )


def _words(dims: Sequence[int]) -> str:
    return f"dimension{'s' if len(dims) > 1 else ''} {', '.join(map(str, dims))}"


def _views(tracer: Tracer, x: Traced, over: Sequence[int]) -> Iterator[tuple[Any, list[int], tuple[int, int]]]:
    """What the tensor may mean: seen with rows and columns, the dimensions that are reduced, those of the pixel."""
    rank, (height, width) = x.dim(), tracer.size
    if x.as_index().shape[0] > 1:  # [N * H * W, C]
        if x.as_index().shape[0] == height * width:
            yield x.view(-1, height, width, *x.shape[1:]), [d + 2 for d in over], (1, 2)
        return
    if rank >= 4:
        if not {rank - 2, rank - 1} & set(over):
            yield x, list(over), (rank - 2, rank - 1)
        if not {1, 2} & set(over):
            yield x, list(over), (1, 2)
    if rank == 3 and 2 not in over:  # [N, C, W]
        yield x.unsqueeze(2), list(over), (2, 3)
    if rank == 3 and 1 not in over:  # [N, W, C]
        yield x.unsqueeze(1), [d + 1 for d in over], (1, 2)
    if rank >= 3 and 1 not in over and x.shape[1] == height * width:  # [N, H * W, C]
        yield x.view(-1, height, width, *x.shape[2:]), [d + 1 for d in over], (1, 2)
    if rank >= 3 and rank - 1 not in over and x.shape[-1] == height * width:  # [N, C, H * W]
        yield x.view(*x.shape[:-1], height, width), list(over), (rank - 1, rank)


def _node(tracer: Tracer, plane: Plane, function: Function, size: int) -> AcrossNode:
    """The node that reads groups of ``size`` channels of a plane, put side by side first where they are not."""
    links, every = tracer.operand(plane), list(range(plane.channels))
    link = links[0]
    if len(links) == 1:
        channels = [c for _, c in sorted(zip(link.rows, link.channels, strict=True))]
        link = Link(link.node, link.dy, link.dx, channels, every)
    if len(links) > 1 or any(link.channels[k] != link.channels[k - 1] + 1 for k in every if k % size):
        copy = PointNode(tracer.name(), plane.channels, plane.box, Function("copy"), [links])
        link = Link(tracer.add(copy), 0, 0, every, every)
    results = plane.channels // size if function.name in REDUCE else plane.channels
    return AcrossNode(tracer.name(), results, plane.box, function, size, link)


# --- softmax and norms ------------------------------------------------------------------------------------------


@OPERATORS.handles("aten::_softmax", "aten::_log_softmax")
def _softmax(tracer: Tracer, x: Traced, dim: int, half_to_float: bool) -> Tensor:
    return across(tracer, x, dim, Function(tracer.operator.removeprefix("aten::_")))


@OPERATORS.handles("aten::native_layer_norm")
def _layer_norm(
    tracer: Tracer, x: Traced, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, None, None]:
    result = across(tracer, x, range(x.dim() - len(shape), x.dim()), Function("standardise", (eps,)))
    result = result if weight is None else result * weight
    return result if bias is None else result + bias, None, None


@OPERATORS.handles("aten::_fused_rms_norm")
def _rms_norm(
    tracer: Tracer, x: Traced, shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, None]:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    squares = x * x
    tracer.operator = "aten::_fused_rms_norm"
    mean = across(tracer, squares, range(x.dim() - len(shape), x.dim()), Function("mean"))
    result = x * (mean + eps).rsqrt()
    return result if weight is None else result * weight, None


@OPERATORS.handles("aten::native_group_norm")
def _group_norm(tracer: Tracer, *_: Any) -> Tensor:
    raise NotTraceable(
        f"layer {tracer.name()!r}: {tracer.operator} mixes pixels: it takes its statistics over all rows and columns, "
        "those drawn later too; nn.LayerNorm over the channels of a pixel, after permute(0, 2, 3, 1), does not"
    )


@OPERATORS.handles("instance_norm")
def _instance_norm(
    tracer: Tracer, x: Traced, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if use_input_stats:
        return _group_norm(tracer)
    return torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)


# --- one number for a group -------------------------------------------------------------------------------------


def _of_dtype(tracer: Tracer, x: Traced, dtype: torch.dtype | None) -> Traced:
    if dtype is not None and dtype != x.dtype:
        raise NotTraceable(f"layer {tracer.name()!r}: {tracer.operator} that changes the dtype to {dtype}")
    return x


@OPERATORS.handles("aten::sum", "aten::mean")
def _sum(
    tracer: Tracer, x: Traced, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    name = tracer.operator.removeprefix("aten::")
    return across(tracer, _of_dtype(tracer, x, dtype), dim, Function(name), keepdim)


@OPERATORS.handles("aten::amax", "aten::logsumexp")
def _reduced(tracer: Tracer, x: Traced, dim: Any = None, keepdim: bool = False) -> Tensor:
    name = "max" if tracer.operator == "aten::amax" else "logsumexp"
    return across(tracer, x, dim, Function(name), keepdim)


@OPERATORS.handles("aten::amin")
def _amin(tracer: Tracer, x: Traced, dim: Any = None, keepdim: bool = False) -> Tensor:
    return -torch.amax(-x, dim, keepdim)


@OPERATORS.handles("aten::max", "aten::min")
def _max(tracer: Tracer, x: Traced, dim: Any = None, keepdim: bool = False) -> Any:
    """Of two tensors, or along a dimension: the values, and nothing in the indices' place."""
    least = tracer.operator == "aten::min"
    if isinstance(dim, Tensor):
        return torch.minimum(x, dim) if least else torch.maximum(x, dim)
    result = across(tracer, -x if least else x, dim, Function("max"), keepdim)
    return (-result if least else result), None


@OPERATORS.handles("aten::var", "aten::std")
def _var(
    tracer: Tracer, x: Traced, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    root = tracer.operator == "aten::std"
    result = across(tracer, x, dim, Function("variance", (1.0 if correction is None else correction,)), keepdim)
    return result.sqrt() if root else result


@OPERATORS.handles("aten::var_mean", "aten::std_mean")
def _var_mean(tracer: Tracer, x: Traced, dim: Any = None, **options: Any) -> tuple[Tensor, Tensor]:
    tracer.operator = tracer.operator.removesuffix("_mean")
    return _var(tracer, x, dim, **options), torch.mean(x, dim, options.get("keepdim", False))


@OPERATORS.handles("aten::linalg_vector_norm")
def _vector_norm(
    tracer: Tracer, x: Traced, order: float = 2, dim: Any = None, keepdim: bool = False, *,
    dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    _of_dtype(tracer, x, dtype)
    if order not in (1, 2, math.inf):
        raise NotTraceable(f"layer {tracer.name()!r}: a norm of order {order}; the sampler follows 1, 2 and infinity")
    terms: Any = x * x if order == 2 else x.abs()
    tracer.operator = "aten::linalg_vector_norm"
    result = across(tracer, terms, dim, Function("max" if order == math.inf else "sum"), keepdim)
    return result.sqrt() if order == 2 else result
