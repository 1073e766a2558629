"""Products with a constant matrix that are written neither as a convolution nor as a linear layer: bmm and einsum."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .attention import scores_of
from .graph import NotTraceable
from .operators import OPERATORS
from .tensor import Traced
from .tracer import Tracer


@OPERATORS.handles("aten::bmm")
def _bmm(tracer: Tracer, a: Any, b: Any) -> Tensor:
    """[N, pixels, C] times a constant [N, C, D], the same for all images, or a constant times [N, C, pixels]."""
    if isinstance(a, Traced) and isinstance(b, Traced):
        return scores_of(tracer, a, b)
    if isinstance(b, Traced):
        return torch.bmm(b.transpose(1, 2), a.transpose(1, 2)).transpose(1, 2)
    if not bool((b == b[:1]).all()):
        raise NotTraceable(f"layer {tracer.name()!r}: a matrix for each image; write it as a sum of products")
    batch, pixels, channels = a.shape
    return torch.mm(a.reshape(-1, channels), b[0]).view(batch, pixels, -1)


@OPERATORS.handles("einsum")
def _einsum(tracer: Tracer, equation: Any, *operands: Any) -> Tensor:
    """As a matrix over the letters that are summed. What is no product of a tensor and a constant, each letter once in
    either, takes PyTorch's own way.
    """
    tensors = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    terms = _letters(equation) if isinstance(equation, str) else None
    if terms is not None and len(tensors) == 2 and all(isinstance(t, Traced) for t in tensors):
        return _product_of_traced(terms, *tensors)
    if terms is None or len(tensors) != 2 or isinstance(tensors[0], Traced) == isinstance(tensors[1], Traced):
        return torch.einsum(equation, *operands)
    (x, constant), (seen, known, made) = tensors, terms
    if isinstance(constant, Traced):
        x, constant, seen, known = constant, x, known, seen
    summed, both = [c for c in seen if c not in made], [c for c in seen if c in known and c in made]
    new = [c for c in made if c not in seen]
    if seen[0] in known or not set(summed) <= set(known) or not set(known) <= {*summed, *both, *new}:
        return torch.einsum(equation, *operands)
    size = dict(zip(seen, x.shape, strict=True)) | dict(zip(known, constant.shape, strict=True))
    blocks = constant.permute([known.index(c) for c in (*both, *summed, *new)])
    rows, columns = (math.prod(size[c] for c in letters) for letters in (summed, new))
    matrix = torch.block_diag(*blocks.reshape(-1, rows, columns))  # a letter of both operands and the result: blocks
    kept = [c for c in seen if c not in summed and c not in both]
    rowwise = x.permute([seen.index(c) for c in (*kept, *both, *summed)]).reshape(-1, len(matrix))
    result = torch.mm(rowwise, matrix).view([-1, *(size[c] for c in (*kept[1:], *both, *new))])
    return result.permute([[*kept, *both, *new].index(c) for c in made])


def _product_of_traced(terms: tuple[str, str, str], a: Tensor, b: Tensor) -> Tensor:
    """Queries times keys, or weights times values, as one matrix product."""
    first, second, made = terms
    batch = [c for c in first if c in second and c in made]
    summed = [c for c in first if c in second and c not in made]
    rows, columns = [c for c in first if c not in second], [c for c in second if c not in first]
    if len(summed) != 1 or len(rows) != 1 or len(columns) != 1 or {*rows, *columns} - set(made):
        raise NotTraceable(f"einsum {first},{second}->{made} of two tensors that depend on the image")
    product = _turned(a, first, [*batch, *rows, *summed]) @ _turned(b, second, [*batch, *summed, *columns])
    return _turned(product, "".join([*batch, *rows, *columns]), list(made))


def _turned(x: Tensor, letters: str, wanted: list[str]) -> Tensor:
    return x if list(letters) == wanted else x.permute([letters.index(c) for c in wanted])


def _letters(equation: str) -> tuple[str, str, str] | None:
    """Of the two operands and the result, where there are so many and no letter stands twice in one."""
    left, arrow, made = equation.replace(" ", "").partition("->")
    terms = [*left.split(","), made]
    fit = arrow and len(terms) == 3 and all(term.isalpha() and len(set(term)) == len(term) for term in terms)
    return (terms[0], terms[1], made) if fit else None
