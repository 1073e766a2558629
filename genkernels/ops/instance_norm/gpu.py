"""Instance norm and activation on a GPU, Triton kernels and launches: the functions of reference.py, one launch each.

A program owns the same PLANES, channels of an image, from end to end and walks their pixels in tiles of PIXELS: forward
three times (mean, squared deviations, y), backward twice (sums of the gradient, the gradient of x). The first walk
reads memory, the others L2, where a program's planes still lie. Nothing is joined between programs, so there is no
second launch and there are no atomics. Bound: memory, 2 images moved forward and 3 backward; with few planes the number
of programs (an image of 64 channels in planes gives 64) bounds it instead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton_conv.arguments import INTERPRETED
from ...triton_conv.elementwise import activate, rounded, slope_at
from ...triton_conv.launch import cdiv, on_device
from ..core.strides import channels_adjoin

_TILE, _MOST_PIXELS, _CHANNELS = 2048, 1024, 32  # elements of a tile, pixels of one of planes, channels of another


class Affine(NamedTuple):
    """Weight and bias [C], or None."""

    weight: Any
    bias: Any


class Form(NamedTuple):
    """What the kernels are compiled for."""

    channels_innermost: bool
    activation: str
    interpreted: bool


class PlaneTile(NamedTuple):
    """Planes that a program owns, and how many of their pixels it holds at a time."""

    planes: int
    pixels: int


@triton.jit
def _places(plane, C, P, CHANNELS_INNERMOST: tl.constexpr):
    """Offsets of the first pixel of each plane."""
    if CHANNELS_INNERMOST:
        place = plane // C * (P * C) + plane % C
    else:
        place = plane * P
    return place


@triton.jit
def _per_channel(values, plane, C, there, otherwise: tl.constexpr):
    if values is not None:
        found = tl.load(values + plane % C, mask=there, other=0.0)
    else:
        found = tl.full(plane.shape, otherwise, tl.float32)
    return found[:, None]


@triton.jit(do_not_specialize=["planes", "slope", "eps"])
def forward_kernel(
    x, y, statistics, affine: Affine, planes, C, P, slope, eps,
    FORM: tl.constexpr, TILE: tl.constexpr,  # Form, PlaneTile
):  # fmt: skip
    ACTIVATION: tl.constexpr = FORM.activation
    PLANES: tl.constexpr = TILE.planes
    PIXELS: tl.constexpr = TILE.pixels
    plane = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    there = plane < planes
    first = _places(plane, C, P, FORM.channels_innermost)[:, None]
    step = C if FORM.channels_innermost else 1
    pixel = tl.arange(0, PIXELS)
    total = tl.zeros((PLANES,), tl.float32)
    for begin in range(0, P, PIXELS):
        p = begin + pixel
        mask = there[:, None] & (p < P)[None, :]
        total += tl.sum(tl.load(x + first + (p * step)[None, :], mask=mask, other=0.0).to(tl.float32), 1)
    mean = (total / P)[:, None]
    squares = tl.zeros((PLANES,), tl.float32)
    for begin in range(0, P, PIXELS):
        p = begin + pixel
        mask = there[:, None] & (p < P)[None, :]
        away = tl.load(x + first + (p * step)[None, :], mask=mask, other=0.0).to(tl.float32) - mean
        squares += tl.sum(tl.where(mask, away * away, 0.0), 1)
    rstd = (1.0 / tl.sqrt(squares / P + eps))[:, None]
    gamma = _per_channel(affine.weight, plane, C, there, 1.0)
    beta = _per_channel(affine.bias, plane, C, there, 0.0)
    for begin in range(0, P, PIXELS):
        p = begin + pixel
        mask = there[:, None] & (p < P)[None, :]
        at = first + (p * step)[None, :]
        u = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - mean) * rstd * gamma + beta
        tl.store(y + at, rounded(activate(u, slope, ACTIVATION), y.dtype.element_ty, FORM.interpreted), mask=mask)
    tl.store(statistics + plane[:, None], mean, mask=there[:, None])
    tl.store(statistics + planes + plane[:, None], rstd, mask=there[:, None])


@triton.jit
def _gradient(grad, x, at, mask, mean, rstd, gamma, beta, slope, ACTIVATION: tl.constexpr):
    """The gradient before the activation, and xhat."""
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    xhat = tl.where(mask, (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - mean) * rstd, 0.0)
    if ACTIVATION != "none":
        g = g * slope_at(activate(xhat * gamma + beta, slope, ACTIVATION), slope, ACTIVATION)
    return g, xhat


@triton.jit(do_not_specialize=["planes", "slope"])
def backward_kernel(
    grad, x, grad_x, statistics, sums, affine: Affine, planes, C, P, slope,
    FORM: tl.constexpr, TILE: tl.constexpr,  # Form, PlaneTile
):  # fmt: skip
    """``grad_x`` None: the sums alone."""
    ACTIVATION: tl.constexpr = FORM.activation
    PLANES: tl.constexpr = TILE.planes
    PIXELS: tl.constexpr = TILE.pixels
    plane = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    there = plane < planes
    first = _places(plane, C, P, FORM.channels_innermost)[:, None]
    step = C if FORM.channels_innermost else 1
    pixel = tl.arange(0, PIXELS)
    mean = tl.load(statistics + plane, mask=there, other=0.0)[:, None]
    rstd = tl.load(statistics + planes + plane, mask=there, other=0.0)[:, None]
    gamma = _per_channel(affine.weight, plane, C, there, 1.0)
    beta = _per_channel(affine.bias, plane, C, there, 0.0)
    total = tl.zeros((PLANES,), tl.float32)
    total_xhat = tl.zeros((PLANES,), tl.float32)
    for begin in range(0, P, PIXELS):
        p = begin + pixel
        mask = there[:, None] & (p < P)[None, :]
        at = first + (p * step)[None, :]
        g, xhat = _gradient(grad, x, at, mask, mean, rstd, gamma, beta, slope, ACTIVATION)
        total += tl.sum(g, 1)
        total_xhat += tl.sum(g * xhat, 1)
    tl.store(sums + plane, total_xhat, mask=there)
    tl.store(sums + planes + plane, total, mask=there)
    if grad_x is not None:
        mean_g = (total / P)[:, None]
        mean_g_xhat = (total_xhat / P)[:, None]
        for begin in range(0, P, PIXELS):
            p = begin + pixel
            mask = there[:, None] & (p < P)[None, :]
            at = first + (p * step)[None, :]
            g, xhat = _gradient(grad, x, at, mask, mean, rstd, gamma, beta, slope, ACTIVATION)
            out = rstd * gamma * (g - mean_g - xhat * mean_g_xhat)
            tl.store(grad_x + at, rounded(out, grad_x.dtype.element_ty, FORM.interpreted), mask=mask)


def _tile(x: Tensor) -> PlaneTile:
    pixels = triton.next_power_of_2(x.shape[2] * x.shape[3])
    if channels_adjoin(x):
        planes = min(triton.next_power_of_2(x.shape[1]), _CHANNELS)
        return PlaneTile(planes, min(pixels, _TILE // planes))
    pixels = min(pixels, _MOST_PIXELS)
    return PlaneTile(max(1, min(4, _MOST_PIXELS // pixels)), pixels)


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str, negative_slope: float, eps: float
) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x)
    statistics = torch.empty((2, x.shape[0], x.shape[1]), device=x.device)
    planes, tile = x.shape[0] * x.shape[1], _tile(x)
    with on_device(x):
        forward_kernel[(cdiv(planes, tile.planes),)](
            x=x, y=y, statistics=statistics, affine=Affine(weight, bias),
            planes=planes, C=x.shape[1], P=x.shape[2] * x.shape[3], slope=negative_slope, eps=eps,
            FORM=Form(channels_adjoin(x), activation, INTERPRETED), TILE=tile,
        )  # fmt: skip
    return y, statistics


def backward(
    grad_output: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor,
    activation: str, negative_slope: float, needs_x: bool,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    grad_x = torch.empty_like(x) if needs_x else None
    sums = torch.empty_like(statistics)
    planes, tile = x.shape[0] * x.shape[1], _tile(x)
    with on_device(x):
        backward_kernel[(cdiv(planes, tile.planes),)](
            grad=grad_output, x=x, grad_x=grad_x, statistics=statistics, sums=sums, affine=Affine(weight, bias),
            planes=planes, C=x.shape[1], P=x.shape[2] * x.shape[3], slope=negative_slope,
            FORM=Form(channels_adjoin(x), activation, INTERPRETED), TILE=tile,
        )  # fmt: skip
    return grad_x, sums
