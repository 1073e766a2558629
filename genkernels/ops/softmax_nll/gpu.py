"""Softmax and negative log-likelihood on a GPU: Triton kernels and launches, the functions of reference.py.

Forward: a program owns PIXELS rows and one colour, and walks the levels in tiles: a product (rows x features x LEVELS),
then the running maximum and the sum of exponentials that flash attention keeps. Backward is two kernels, each of which
computes the logits once more and turns them into d = grad * (softmax - one-hot) in registers. For x a program owns
PIXELS rows and FEATURES of their gradient, and walks colours and levels; for the weight and bias it owns LEVELS of a
colour, FEATURES and a share of the rows, whose partial sums are added in order by a second launch: no atomics, the same
result every time. Logits are never in memory.

Traffic: x and the weight are read once a program, from L2 after the first; nothing else is large. Bound: the products,
2 * features * levels operations a sub-pixel forward, 8 backward (two of them again for each further tile of FEATURES).
Sums are float32, and so is d, whatever the features are. Not measured on a GPU yet: sizes of tiles are a first guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton_conv.arguments import INTERPRETED
from ...triton_conv.launch import cdiv, on_device
from .cpu import Gradients

_PIXELS, _LEVELS, _FEATURES = 64, 64, 64
_SHARES = 32  # of the rows, at most, in the weight's gradient


class Sizes(NamedTuple):
    """Rows, features, colours, levels."""

    P: Any
    K: Any
    C: Any
    L: Any


class Inputs(NamedTuple):
    """x [P, K], weight [C * L, K], bias [C * L] or None, target [P, C], live features [C]."""

    x: Any
    weight: Any
    bias: Any
    target: Any
    live: Any


class Known(NamedTuple):
    """What backward is given: the logarithm of the sum of exponentials, and the gradient, [P, C] each."""

    log_sum_exp: Any
    grad: Any


class Form(NamedTuple):
    """What the kernels are compiled for."""

    pixels: int
    levels: int
    features: int
    has_bias: bool
    interpreted: bool  # by Triton's interpreter, whose tl.dot is wrong in bfloat16


@triton.jit
def _logits(inputs: Inputs, rows, levels, colour, live, sizes: Sizes, FORM: tl.constexpr):
    """[PIXELS, LEVELS] of a colour, float32; -inf behind the last level."""
    feature = tl.arange(0, FORM.features)
    acc = tl.zeros((FORM.pixels, FORM.levels), tl.float32)
    at_row = rows.to(tl.int64)[:, None] * sizes.K
    at_level = (colour * sizes.L + levels).to(tl.int64)[None, :] * sizes.K
    row_is_there = (rows < sizes.P)[:, None]
    level_is_there = (levels < sizes.L)[None, :]
    for first in range(0, live, FORM.features):
        k = first + feature
        a = tl.load(inputs.x + at_row + k[None, :], mask=row_is_there & (k < live)[None, :], other=0.0)
        b = tl.load(inputs.weight + at_level + k[:, None], mask=level_is_there & (k < live)[:, None], other=0.0)
        if FORM.interpreted:
            a = a.to(tl.float32)
        acc = tl.dot(a, b.to(a.dtype), acc, input_precision="ieee")
    if FORM.has_bias:
        acc += tl.load(inputs.bias + colour * sizes.L + levels, mask=levels < sizes.L, other=0.0).to(tl.float32)[
            None, :
        ]
    return tl.where(level_is_there, acc, -float("inf"))


@triton.jit
def _gradient(inputs: Inputs, known: Known, rows, levels, colour, live, sizes: Sizes, FORM: tl.constexpr):
    """d of [PIXELS, LEVELS]; zero behind the last row and level."""
    there = rows < sizes.P
    at = rows.to(tl.int64) * sizes.C + colour
    named = tl.load(inputs.target + at, mask=there, other=0)
    lse = tl.load(known.log_sum_exp + at, mask=there, other=0.0)
    scale = tl.load(known.grad + at, mask=there, other=0.0)
    z = _logits(inputs, rows, levels, colour, live, sizes, FORM)
    d = tl.exp(z - lse[:, None]) - (levels[None, :] == named[:, None]).to(tl.float32)
    return tl.where(there[:, None] & (levels < sizes.L)[None, :], d * scale[:, None], 0.0)


@triton.jit
def forward_kernel(inputs: Inputs, nll, log_sum_exp, sizes: Sizes, FORM: tl.constexpr):
    rows = tl.program_id(0) * FORM.pixels + tl.arange(0, FORM.pixels)
    colour = tl.program_id(1)
    there = rows < sizes.P
    at = rows.to(tl.int64) * sizes.C + colour
    named = tl.load(inputs.target + at, mask=there, other=0)
    live = tl.load(inputs.live + colour)
    highest = tl.full((FORM.pixels,), -float("inf"), tl.float32)
    total = tl.zeros((FORM.pixels,), tl.float32)
    chosen = tl.zeros((FORM.pixels,), tl.float32)
    for first in range(0, sizes.L, FORM.levels):
        levels = first + tl.arange(0, FORM.levels)
        z = _logits(inputs, rows, levels, colour, live, sizes, FORM)
        higher = tl.maximum(highest, tl.max(z, 1))
        # Until a logit is finite there is nothing to scale; -inf less -inf would be NaN.
        total = tl.where(highest == -float("inf"), 0.0, total * tl.exp(highest - higher))
        total += tl.sum(tl.where(z == -float("inf"), 0.0, tl.exp(z - higher[:, None])), 1)
        chosen += tl.sum(tl.where(levels[None, :] == named[:, None], z, 0.0), 1)
        highest = higher
    lse = highest + tl.log(total)
    tl.store(log_sum_exp + at, lse, mask=there)
    tl.store(nll + at, lse - chosen, mask=there)


@triton.jit
def grad_x_kernel(inputs: Inputs, known: Known, grad_x, sizes: Sizes, FORM: tl.constexpr):
    rows = tl.program_id(0) * FORM.pixels + tl.arange(0, FORM.pixels)
    own = tl.program_id(1) * FORM.features + tl.arange(0, FORM.features)
    acc = tl.zeros((FORM.pixels, FORM.features), tl.float32)
    for colour in range(sizes.C):
        live = tl.load(inputs.live + colour)
        for first in range(0, sizes.L, FORM.levels):
            levels = first + tl.arange(0, FORM.levels)
            d = _gradient(inputs, known, rows, levels, colour, live, sizes, FORM)
            at = (colour * sizes.L + levels).to(tl.int64)[:, None] * sizes.K + own[None, :]
            w = tl.load(inputs.weight + at, mask=(levels < sizes.L)[:, None] & (own < live)[None, :], other=0.0)
            acc = tl.dot(d, w.to(tl.float32), acc, input_precision="ieee")
    mask = (rows < sizes.P)[:, None] & (own < sizes.K)[None, :]
    tl.store(grad_x + rows.to(tl.int64)[:, None] * sizes.K + own[None, :], acc, mask=mask)


@triton.jit
def grad_weight_kernel(
    inputs: Inputs, known: Known, grad_weight, grad_bias, share, tiles, sizes: Sizes, FORM: tl.constexpr
):  # fmt: skip
    """``share`` rows a program, a multiple of PIXELS; partial sums [shares][C * L][K], and [shares][C * L]."""
    colour = tl.program_id(0) // tiles
    levels = tl.program_id(0) % tiles * FORM.levels + tl.arange(0, FORM.levels)
    own = tl.program_id(1) * FORM.features + tl.arange(0, FORM.features)
    part = tl.program_id(2)
    live = tl.load(inputs.live + colour)
    acc = tl.zeros((FORM.levels, FORM.features), tl.float32)
    of_bias = tl.zeros((FORM.levels,), tl.float32)
    for first in range(part * share, tl.minimum((part + 1) * share, sizes.P), FORM.pixels):
        rows = first + tl.arange(0, FORM.pixels)
        d = _gradient(inputs, known, rows, levels, colour, live, sizes, FORM)
        at = rows.to(tl.int64)[:, None] * sizes.K + own[None, :]
        values = tl.load(inputs.x + at, mask=(rows < sizes.P)[:, None] & (own < live)[None, :], other=0.0)
        acc = tl.dot(tl.trans(d), values.to(tl.float32), acc, input_precision="ieee")
        of_bias += tl.sum(d, 0)
    there = levels < sizes.L
    row = (part.to(tl.int64) * sizes.C + colour) * sizes.L + levels
    tl.store(grad_weight + row[:, None] * sizes.K + own[None, :], acc, mask=there[:, None] & (own < sizes.K)[None, :])
    if tl.program_id(1) == 0:
        tl.store(grad_bias + row, of_bias, mask=there)


def _form(sizes: Sizes, bias: Tensor | None) -> Form:
    def tile(count: int, most: int) -> int:
        return max(16, min(most, triton.next_power_of_2(count)))  # tl.dot takes 16 at least

    return Form(tile(sizes.P, _PIXELS), tile(sizes.L, _LEVELS), tile(sizes.K, _FEATURES), bias is not None, INTERPRETED)


def _sizes(x: Tensor, weight: Tensor, live: Sequence[int]) -> Sizes:
    return Sizes(x.shape[0], x.shape[1], len(live), weight.shape[0] // len(live))


def _inputs(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, live: Sequence[int]) -> Inputs:
    bias = None if bias is None else bias.contiguous()
    return Inputs(
        x.contiguous(), weight.contiguous(), bias, target.contiguous(), torch.tensor(live, device=x.device)
    )  # fmt: skip


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, live: Sequence[int]
) -> tuple[Tensor, Tensor]:
    sizes = _sizes(x, weight, live)
    form = _form(sizes, bias)
    nll, log_sum_exp = (torch.empty(target.shape, device=x.device) for _ in range(2))
    with on_device(x):
        forward_kernel[(cdiv(sizes.P, form.pixels), sizes.C)](
            inputs=_inputs(x, weight, bias, target, live), nll=nll, log_sum_exp=log_sum_exp, sizes=sizes, FORM=form
        )
    return nll, log_sum_exp


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, log_sum_exp: Tensor,
    live: Sequence[int], needs: Sequence[bool],
) -> Gradients:  # fmt: skip
    found = _gradients(grad, x, weight, bias, target, log_sum_exp, live, needs)
    a, b, c = (
        None if g is None or like is None else g.to(like.dtype)
        for g, like in zip(found, (x, weight, bias), strict=True)
    )
    return a, b, c


def total(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, counts: Tensor | None, live: Sequence[int],
    needs: Sequence[bool],
) -> tuple[Tensor, Gradients]:  # fmt: skip
    nll, log_sum_exp = forward(x, weight, bias, target, live)
    scale = torch.ones_like(nll) if counts is None else counts
    return (nll * scale).sum(), _gradients(scale, x, weight, bias, target, log_sum_exp, live, needs)


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, log_sum_exp: Tensor,
    live: Sequence[int], needs: Sequence[bool],
) -> Gradients:  # fmt: skip
    """In float32."""
    sizes = _sizes(x, weight, live)
    form = _form(sizes, bias)
    arguments: dict[str, Any] = {
        "inputs": _inputs(x, weight, bias, target, live), "sizes": sizes, "FORM": form,
        "known": Known(log_sum_exp.contiguous(), grad.float().contiguous()),
    }  # fmt: skip
    grad_x = grad_weight = grad_bias = None
    feature_tiles = cdiv(sizes.K, form.features)
    with on_device(x):
        if needs[0]:
            grad_x = torch.empty(x.shape, device=x.device)
            grad_x_kernel[(cdiv(sizes.P, form.pixels), feature_tiles)](**arguments, grad_x=grad_x)
        if needs[1] or needs[2]:
            share = cdiv(cdiv(sizes.P, form.pixels), _SHARES) * form.pixels
            parts, tiles = cdiv(sizes.P, share), cdiv(sizes.L, form.levels)
            weights = torch.empty((parts, *weight.shape), device=x.device)
            biases = torch.empty((parts, weight.shape[0]), device=x.device)
            grad_weight_kernel[(sizes.C * tiles, feature_tiles, parts)](
                **arguments, grad_weight=weights, grad_bias=biases, share=share, tiles=tiles
            )
            grad_weight, grad_bias = weights.sum(0), biases.sum(0)
    return grad_x, grad_weight if needs[1] else None, grad_bias if needs[2] else None
