"""The GPU kernels of the masked convolution: geometry around the tiled convolution, and what comes before its backward.

Forward and input gradient are one kernel (tile_conv/forward.py): the input gradient is the same sum with the shifts
negated and the weight's channels exchanged. Only live taps are walked. The layout of the tensor cores is
channels_last: with 16 channels and more, other inputs are copied to it once and contiguous results from it.

Backward first makes g = grad_y * relu'(y) in one pass, which also brings it into that layout and adds up the bias
gradient, per tile and in a fixed order: both products read g once per tap, so the slope in their loaders would be
worked out that often, on the way into the tensor cores. The pass moves 3 tensors the size of y; without ReLU and
with channels innermost it only reads one, for the bias, or does not run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tile_conv.forward import rounded
from ..tile_conv.launch import FEW_CHANNELS, INTERPRETED, Walk, convolve, is_wide, on_device, weight_gradient
from .layout import empty_grad_input, empty_output
from .mask import MaskSpec

_ROWS, _CHANNELS, _TILES = 64, 32, 16  # pixels and channels of a tile, and tiles of one program


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: MaskSpec, dilation: tuple[int, int], activation: str
) -> Tensor:
    """As cpu.forward."""
    y = empty_output(x, weight)
    convolve(x, weight, y, _walk(spec, dilation, "forward"), bias=bias, activation=activation)
    return y


def backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    output: Tensor | None,
    spec: MaskSpec,
    dilation: tuple[int, int],
    activation: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """As cpu.backward."""
    grad_x = empty_grad_input(x) if needs[0] else x.new_empty(0)
    grad_weight = torch.empty_like(weight) if needs[1] else x.new_empty(0)
    grad_bias = x.new_empty(weight.shape[0]) if needs[2] else x.new_empty(0)
    if x.numel() == 0:
        return grad_x, grad_weight.zero_(), grad_bias.zero_()
    with on_device(x):
        grad_output = _before_activation(
            grad_output, output if activation == "relu" else None, grad_bias if needs[2] else None
        )
    if needs[0]:
        convolve(grad_output, weight.transpose(0, 1), grad_x, _walk(spec, dilation, "backward"))
    if needs[1]:
        target = grad_weight
        weight_gradient(grad_output, x, target, _walk(spec, dilation, "forward"))
    return grad_x, grad_weight, grad_bias


def _walk(spec: MaskSpec, dilation: tuple[int, int], direction: str) -> Walk:
    reach = tuple(k // 2 * d for k, d in zip(spec.kernel, dilation, strict=True))
    sign = 1 if direction == "forward" else -1
    by_groups = spec.channel_groups > 1
    return Walk(
        kernel=spec.kernel,
        taps=len(spec.full_taps()) + (not by_groups and spec.mask_type == "B"),
        first=(-sign * reach[0], -sign * reach[1]),
        step=(sign * dilation[0], sign * dilation[1]),
        centre=direction if by_groups else "",
        groups=spec.channel_groups,
        see_own=spec.mask_type == "B",
        interleaved=spec.group_layout == "interleaved",
    )


def _before_activation(grad_output: Tensor, output: Tensor | None, grad_bias: Tensor | None) -> Tensor:
    """grad_output times the ReLU's slope at ``output``, channels innermost where they are many; fills grad_bias."""
    n, channels, height, width = grad_output.shape
    write = output is not None or (grad_output.stride(1) != 1 and channels >= FEW_CHANNELS)
    if not write and grad_bias is None:
        return grad_output
    g = torch.empty_like(grad_output, memory_format=torch.channels_last) if write else grad_output
    rows = n * height * width
    parts = triton.cdiv(rows, _ROWS * _TILES)
    partial = None
    if grad_bias is not None:
        partial = torch.empty((parts, channels), dtype=torch.float32, device=g.device)
    strides = (0, 0, 0, 0) if output is None else output.stride()
    slope_kernel[(parts, triton.cdiv(channels, _CHANNELS))](
        grad_output, output, g, partial,
        rows, height, width, channels,
        *grad_output.stride(), *strides, *g.stride(),
        RELU=output is not None, WRITE=write, BIAS=grad_bias is not None,
        WIDE=is_wide(grad_output, g if output is None else output, g),
        ROWS=_ROWS, CHANNELS=_CHANNELS, TILES=_TILES,
    )  # fmt: skip
    if grad_bias is not None:
        add_up_kernel[(triton.cdiv(channels, 128),)](
            partial, grad_bias, parts, channels, INTERPRETED=INTERPRETED, BLOCK=128
        )
    return g


@triton.jit(do_not_specialize=["rows", "H", "W"])
def slope_kernel(
    grad, y, g, partial,
    rows, H, W, C,
    gs_n, gs_c, gs_h, gs_w,
    ys_n, ys_c, ys_h, ys_w,
    os_n, os_c, os_h, os_w,
    RELU: tl.constexpr, WRITE: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """g = grad * (y > 0), and the sum of g over the program's pixels: partial [programs, C]."""
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(0) * ROWS * TILES + tl.arange(0, ROWS)
    if WIDE:
        c = c.to(tl.int64)
        row = tl.program_id(0).to(tl.int64) * ROWS * TILES + tl.arange(0, ROWS)
    total = tl.zeros((CHANNELS,), tl.float32)
    for _ in range(tl.minimum(tl.cdiv(rows - tl.program_id(0) * (ROWS * TILES), ROWS), TILES)):
        n = row // (H * W)
        h = row // W % H
        w = row % W
        mask = (row < rows)[:, None] & (c < C)[None, :]
        v = tl.load(grad + (n * gs_n + h * gs_h + w * gs_w)[:, None] + (c * gs_c)[None, :], mask=mask, other=0.0)
        if RELU:
            at = tl.load(y + (n * ys_n + h * ys_h + w * ys_w)[:, None] + (c * ys_c)[None, :], mask=mask, other=0.0)
            v = tl.where(at > 0, v, 0.0).to(grad.dtype.element_ty)
        if WRITE:
            tl.store(g + (n * os_n + h * os_h + w * os_w)[:, None] + (c * os_c)[None, :], v, mask=mask)
        if BIAS:
            total += tl.sum(v.to(tl.float32), 0)
        row += ROWS
    if BIAS:
        tl.store(partial + tl.program_id(0) * C + c, total, mask=c < C)


@triton.jit(do_not_specialize=["parts", "C"])
def add_up_kernel(partial, result, parts, C, INTERPRETED: tl.constexpr, BLOCK: tl.constexpr):
    """result[c] = the sum of partial[:, c], in order."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(parts):
        total += tl.load(partial + part * C + c, mask=c < C, other=0.0)
    tl.store(result + c, rounded(total, result.dtype.element_ty, INTERPRETED), mask=c < C)
