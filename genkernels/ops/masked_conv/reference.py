"""The masked convolution in plain PyTorch: works in every dtype and on every device, and is the oracle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .mask import MaskSpec, live_taps


def _masked(weight: Tensor, spec: MaskSpec) -> Tensor:
    return weight * live_taps(spec, weight.device)


def _padding(spec: MaskSpec, dilation: tuple[int, int]) -> list[int]:
    return [spec.kernel[0] // 2 * dilation[0], spec.kernel[1] // 2 * dilation[1]]


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: MaskSpec,
    dilation: tuple[int, int],
    activation: str,
) -> Tensor:
    """``act(conv2d(x, weight * mask) + bias)``: x [N, C, H, W], weight [O, C, kh, kw] -> [N, O, H, W]."""
    if x.numel() == 0:  # conv2d refuses images without pixels
        return x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])
    y = F.conv2d(x, _masked(weight, spec), bias, padding=_padding(spec, dilation), dilation=dilation)
    return y.relu_() if activation == "relu" else y


def backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    output: Tensor | None,
    spec: MaskSpec,
    dilation: tuple[int, int],
    activation: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, each None where ``needs`` says so. ``output`` is read for the ReLU only."""
    if x.numel() == 0:
        zeros = (torch.zeros_like(x), torch.zeros_like(weight), weight.new_zeros(weight.shape[0]))
        grads = [zero if need else None for zero, need in zip(zeros, needs, strict=True)]
        return grads[0], grads[1], grads[2]
    if activation == "relu":
        assert output is not None
        grad_output = grad_output * (output > 0)
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad_output,
        x,
        _masked(weight, spec),
        [weight.shape[0]],
        [1, 1],
        _padding(spec, dilation),
        list(dilation),
        False,
        [0, 0],
        1,
        list(needs),
    )
    if grad_weight is not None:
        grad_weight = _masked(grad_weight, spec)
    return grad_x, grad_weight, grad_bias


# --- the gate behind it ---------------------------------------------------------------------------------------------


def gate(features: Tensor) -> Tensor:
    """``tanh(a) * sigmoid(b)`` of the two halves of the channels: [N, 2h, H, W] -> [N, h, H, W]."""
    a, b = features.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


def gated_features(
    x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, spec: MaskSpec, dilation: tuple[int, int]
) -> Tensor:
    """What the gate reads, in plain PyTorch."""
    made = forward(x, weight, bias, spec, dilation, "none")
    return made if addend is None else made + addend


def through_gate(grad: Tensor, features: Tensor) -> Tensor:
    """grad_y [N, h, H, W] times the derivative of the gate, to both halves: [N, 2h, H, W]."""
    a, b = features.chunk(2, 1)
    a, b = torch.tanh(a), torch.sigmoid(b)
    return torch.cat([grad * b * (1 - a * a), grad * a * b * (1 - b)], 1)
