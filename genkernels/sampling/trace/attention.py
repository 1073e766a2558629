"""Attention: softmax(queries times keys) times values, as tensors that are no channels of pixels until its end.

The product of two traced tensors is a :class:`Scores`: for every query and key a number times their product, plus a
constant. Scaling, masks and constants change these numbers; the softmax over the keys makes :class:`Weights` of it, and
the product with the values a node of the graph. Whatever else is done with them is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .graph import AttentionNode, NotTraceable
from .operators import OPERATORS
from .tensor import Pending, Traced
from .tracer import Tracer

MASKED = -1e3  # a constant from here down is a mask: its exponential is zero beside any other score's


class Scores(Pending):
    """For each query (row) and key (column) ``factor * <query, key> + shift``; transposed where columns are queries.

    Attributes:
        rows, columns: the elements of both, int64 [heads, tokens, d].
        factor, shift: [heads or 1, T or 1, S or 1].
        transposed: whether the tensor's last two dimensions stand the other way round.
    """

    rows: Tensor
    columns: Tensor
    factor: Tensor
    shift: Tensor
    transposed: bool

    what = (
        "attention scores; between the product of queries and keys and that with the values the sampler follows "
        "scaling, constants that are added, masks, the softmax over the keys, and views"
    )


class Weights(Scores):
    """The softmax of scores over the keys, which are the columns now, times ``factor``.

    Attributes:
        shift: of the scores.
        scale: the factor that all scores had.
        empty_is_zero: whether a query without keys gets zeros, and not NaN.
    """

    scale: float
    empty_is_zero: bool

    what = (
        "attention weights; between the softmax and the product with the values the sampler follows constant factors, "
        "masks and views"
    )


def _like(scores: Any, shape: Sequence[int] | None = None, **changed: Any) -> Any:
    made = type(scores)(scores.tracer, scores.shape if shape is None else shape, dtype=scores.dtype)
    vars(made).update({name: value for name, value in vars(scores).items() if name not in vars(made)} | changed)
    return made


def _constant(tracer: Tracer, scores: Any, value: Any) -> Tensor:
    """A number, or a constant that broadcasts to the scores, as [heads or 1, T or 1, S or 1]; one for all images."""
    if isinstance(value, Traced):
        raise NotTraceable(f"layer {tracer.name()!r}: {tracer.operator} of {scores.what}")
    tensor = torch.as_tensor(value, device=tracer.device)
    if tensor.dtype != torch.bool:
        tensor = tensor.to(tracer.dtype)
    heads = len(scores.rows)
    rank = scores.dim()
    full = tensor.reshape((1,) * (rank - tensor.dim()) + tuple(tensor.shape))
    if any(size != 1 for size in full.shape[:-2]):
        full = full.expand(*scores.shape[:-2], *full.shape[-2:]).reshape(-1, heads, *full.shape[-2:])
        if not bool((full == full[:1]).all()):
            raise NotTraceable(
                f"layer {tracer.name()!r}: a mask of attention for each image; the sampler takes one for all"
            )
        full = full[0]
    else:
        full = full.reshape(1, *full.shape[-2:])
    return full.transpose(1, 2) if scores.transposed else full


# --- scores -----------------------------------------------------------------------------------------------------


def scores_of(tracer: Tracer, a: Traced, b: Traced) -> Scores:
    """[N * heads, T, d] times [N * heads, d, S]"""
    rows, columns = a.as_index(), b.as_index().transpose(1, 2)
    scores = Scores(tracer, (a.shape[0], a.shape[1], b.shape[2]))
    one = torch.ones(1, 1, 1, dtype=tracer.dtype, device=tracer.device)
    scores.rows, scores.columns, scores.factor, scores.shift = rows, columns, one, torch.zeros_like(one)
    scores.transposed = False
    return scores


@OPERATORS.handles("aten::baddbmm")
def _baddbmm(tracer: Tracer, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return torch.bmm(a, b) * alpha + bias * beta


@OPERATORS.of_pending("aten::mul", "aten::div")
def _scale(tracer: Tracer, x: Any, by: Any) -> Any:
    if not isinstance(x, Scores):
        x, by = by, x
        if tracer.operator == "aten::div":
            by = None  # a number divided by scores
    if by is None:
        raise NotTraceable(f"layer {tracer.name()!r}: {tracer.operator} of {x.what}")
    number = _constant(tracer, x, by)
    number = number.to(tracer.dtype) if tracer.operator == "aten::mul" else 1 / number
    if isinstance(x, Weights):
        return _like(x, factor=x.factor * number)
    return _like(x, factor=x.factor * number, shift=x.shift * number)


@OPERATORS.of_pending("aten::add", "aten::sub")
def _shift(tracer: Tracer, x: Any, by: Any, alpha: float = 1) -> Any:
    minus = tracer.operator == "aten::sub"
    if not isinstance(x, Scores) and not minus:
        x, by, alpha = by, x, 1
    if not isinstance(x, Scores) or isinstance(x, Weights):
        raise NotTraceable(
            f"layer {tracer.name()!r}: {tracer.operator} of {(x if isinstance(x, Pending) else by).what}"
        )
    return _like(x, shift=x.shift + (-alpha if minus else alpha) * _constant(tracer, x, by).to(tracer.dtype))


def _replaced(tracer: Tracer, x: Any, where: Any, value: Any) -> Any:
    """The scores, or weights, with a number where a constant mask says so."""
    mask, number = _constant(tracer, x, where).bool(), _constant(tracer, x, value).to(tracer.dtype)
    if isinstance(x, Weights):
        if bool((number.broadcast_to(mask.shape)[mask] != 0).any()):
            raise NotTraceable(f"layer {tracer.name()!r}: {tracer.operator} of {x.what}")
        return _like(x, factor=torch.where(mask, 0, x.factor))
    return _like(x, factor=torch.where(mask, 0, x.factor), shift=torch.where(mask, number, x.shift))


@OPERATORS.of_pending("aten::masked_fill")
def _masked_fill(tracer: Tracer, x: Any, mask: Tensor, value: Any) -> Any:
    return _replaced(tracer, x, mask, value)


@OPERATORS.of_pending("aten::where")
def _where(tracer: Tracer, mask: Tensor, x: Any, other: Any) -> Any:
    return _replaced(tracer, x, ~mask, other) if isinstance(x, Scores) else _replaced(tracer, other, mask, x)


# --- views ------------------------------------------------------------------------------------------------------


@OPERATORS.of_pending("aten::view", "aten::_unsafe_view", "aten::reshape", "aten::expand")
def _view(tracer: Tracer, x: Any, shape: Sequence[int], **_: Any) -> Any:
    if isinstance(x, Scores):
        known = [size if size != -1 else x.shape[k - len(shape)] for k, size in enumerate(shape)]
        if tracer.operator != "aten::expand":
            rest = math.prod(size for size in shape if size != -1)
            known = [size if size != -1 else x.numel() // rest for size in shape]
        if known[-2:] == list(x.shape[-2:]) and math.prod(known) == x.numel():
            return _like(x, known)
    raise NotTraceable(f"layer {tracer.name()!r}: {tracer.operator} of {x.what}")


@OPERATORS.of_pending("aten::unsqueeze", "aten::squeeze")
def _squeeze(tracer: Tracer, x: Any, *dims: int) -> Any:
    shape = getattr(torch.empty(x.shape, device="meta"), tracer.operator.removeprefix("aten::"))(*dims).shape
    return _view(tracer, x, list(shape))


@OPERATORS.of_pending("aten::transpose", "aten::permute")
def _transpose(tracer: Tracer, x: Any, *dims: Any) -> Any:
    rank = x.dim()
    order = tracer.order(rank, *dims)
    if isinstance(x, Scores) and order[:-2] == list(range(rank - 2)):
        turned = order[-1] != rank - 1
        return _like(x, [x.shape[d] for d in order], transposed=x.transposed != turned)
    raise NotTraceable(f"layer {tracer.name()!r}: {tracer.operator} of {x.what}")


@OPERATORS.of_pending("aten::clone", "aten::contiguous", "aten::detach", "aten::alias", "aten::_to_copy")
def _same(tracer: Tracer, x: Any, **keywords: Any) -> Any:
    if keywords.get("dtype") not in (None, x.dtype):
        raise NotTraceable(f"layer {tracer.name()!r}: {tracer.operator} of {x.what}")
    return _like(x) if isinstance(x, Scores) else x


# --- weights ----------------------------------------------------------------------------------------------------


@OPERATORS.of_pending("aten::_softmax", "aten::_safe_softmax")
def softmax(tracer: Tracer, x: Any, dim: int, *_: Any, **__: Any) -> Weights:
    """The softmax over keys, whichever side they stand on."""
    if not isinstance(x, Scores) or isinstance(x, Weights) or dim % x.dim() < x.dim() - 2:
        raise NotTraceable(f"layer {tracer.name()!r}: {tracer.operator} of {x.what}")
    over_rows = (dim % x.dim() == x.dim() - 2) != x.transposed  # then rows are the keys
    rows, columns, factor, shift = x.rows, x.columns, x.factor, x.shift
    if over_rows:
        rows, columns, factor, shift = columns, rows, factor.transpose(1, 2), shift.transpose(1, 2)
    sizes = (len(rows), rows.shape[1], columns.shape[1])
    shift = shift.expand(-1, *sizes[1:])
    scales = factor.expand(len(shift) if len(factor) == 1 else len(factor), *sizes[1:])
    used = scales[(shift > MASKED).expand_as(scales)]
    if used.numel() and not bool((used == used[0]).all()):
        raise NotTraceable(
            f"layer {tracer.name()!r}: a scale of attention scores for each query and key; one is followed"
        )
    weights = Weights(tracer, x.shape, dtype=x.dtype)
    weights.rows, weights.columns, weights.shift = rows, columns, shift
    weights.factor = torch.ones_like(shift[:1, :1, :1])
    weights.transposed = x.transposed != over_rows
    weights.scale = float(used[0]) if used.numel() else 1.0
    weights.empty_is_zero = tracer.operator == "aten::_safe_softmax"
    return weights


@OPERATORS.of_pending("aten::nan_to_num")
def _nan_to_num(tracer: Tracer, x: Any, nan: float | None = None, *_: Any) -> Any:
    if not isinstance(x, Weights) or nan not in (None, 0.0):
        raise NotTraceable(f"layer {tracer.name()!r}: {tracer.operator} of {x.what}")
    return _like(x, empty_is_zero=True)


@OPERATORS.of_pending("aten::bmm")
def _product(tracer: Tracer, a: Any, b: Any) -> Tensor:
    """Weights times values, or values times weights that stand the other way round."""
    if isinstance(b, Weights) and isinstance(a, Traced) and not isinstance(a, Pending) and b.transposed:
        return _attended(tracer, b, a.as_index().transpose(1, 2)).transpose(1, 2)
    if isinstance(a, Weights) and isinstance(b, Traced) and not isinstance(b, Pending) and not a.transposed:
        return _attended(tracer, a, b.as_index())
    raise NotTraceable(f"layer {tracer.name()!r}: bmm of {(a if isinstance(a, Pending) else b).what}")


def _attended(tracer: Tracer, weights: Weights, values: Tensor) -> Tensor:
    """[N * heads, T, d] from the values' elements [heads, S, d]."""
    heads, tokens, _ = weights.rows.shape
    height, width = tracer.size
    if tokens != height * width or weights.columns.shape[1] != tokens:
        raise NotTraceable(
            f"layer {tracer.name()!r}: attention of {tokens} queries over {weights.columns.shape[1]} keys; expected as "
            f"many as an image of {height} x {width} has pixels"
        )
    seen, factor = _mask(tracer, weights)
    operands = []
    for index in (weights.rows, weights.columns, values):
        image = index.transpose(1, 2).reshape(1, heads * index.shape[2], height, width)
        operands.append(tracer.operand(tracer.numbering.plane(image, tracer.name())))
    query, keys, own = (tracer.copied(links, heads * index.shape[2]) for links, index in zip(
        operands, (weights.rows, weights.columns, values), strict=True
    ))  # fmt: skip
    shift = weights.shift.masked_fill(~seen, 0)
    node = AttentionNode(
        tracer.name(), heads * values.shape[2], query.node.extent, query, keys, own, heads, weights.scale, seen,
        shift if bool(shift.any()) else None,
    )  # fmt: skip
    batch = weights.shape.numel() // (heads * tokens * tokens)
    result: Tensor = tracer.result(node, (batch, node.channels, height, width))
    if factor is not None:  # [heads or 1, T]: of each query
        of_channels = factor.expand(heads, -1).repeat_interleave(values.shape[2], 0)
        result = result * of_channels.view(1, -1, height, width)
    result = result.view(batch, heads, values.shape[2], tokens).transpose(2, 3)
    return result.reshape(batch * heads, tokens, values.shape[2])


def _mask(tracer: Tracer, weights: Weights) -> tuple[Tensor, Tensor | None]:
    """Which keys each query sees, bool [heads or 1, T, S], and a factor for each query, or None.

    Raises:
        NotTraceable: they are later ones, there is none, or the factors differ from key to key.
    """
    seen = weights.shift > MASKED
    tokens = seen.shape[1]
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=seen.device).triu(1)
    if bool((seen & later).any()):
        raise NotTraceable(f"not causal: layer {tracer.name()!r} attends to pixels that are drawn later")
    factor = weights.factor.expand(-1, *seen.shape[1:])
    mask = seen.expand(max(len(seen), len(factor)), -1, -1)
    factor = factor.expand_as(mask)
    own = torch.where(mask, factor, -math.inf).amax(2)  # [heads or 1, T]
    empty = ~mask.any(2)
    if bool((mask & (factor != own[:, :, None])).any()):
        raise NotTraceable(f"layer {tracer.name()!r}: attention weights times a factor for each query and key")
    if bool(empty.any()) and not weights.empty_is_zero:
        minus_infinity = bool((weights.shift.expand_as(mask)[empty] == -math.inf).any())
        zeroed = ~factor.any(2)
        if minus_infinity or not bool(zeroed[empty].all()):
            token = int(empty.any(0).nonzero()[0])
            what = "is NaN" if minus_infinity else "is a mean over all pixels, later ones too"
            raise NotTraceable(
                f"layer {tracer.name()!r}: pixel {divmod(token, tracer.size[1])} attends to none, so that its softmax "
                f"{what}; multiply the weights by a mask that is 0 there, or let it attend to a start token of its own"
            )
    own = torch.where(empty, 0, own)
    needed = bool((own[~empty] != 1).any())
    return seen, own if needed else None
