"""The GPU kernels of the masked convolution: geometry around the tiled convolution.

Forward and input gradient are one kernel (triton_conv/forward.py): the input gradient is the same sum with the shifts
negated and the weight's channels exchanged. Only live taps are walked. The layout of the tensor cores is
channels_last: with 16 channels and more, other inputs are copied to it once and contiguous results from it.

Backward first takes the ReLU's slope and the bias gradient in one pass (triton_conv/gradient.py), which without ReLU
and with channels innermost only reads, for the bias, or does not run. Under a gate the same pass makes the gradient of
both halves.
"""

from __future__ import annotations

from torch import Tensor

from ...triton_conv.launch import Gate, convolve, gate_gradient, gradient, weight_gradient
from ...triton_conv.tap_geometry import Walk
from ..core.layout import empty_gradients, empty_output
from .mask import MaskSpec


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: MaskSpec, dilation: tuple[int, int], activation: str
) -> Tensor:
    """As cpu.forward."""
    y = empty_output(x, weight)
    convolve(x, weight, y, _walk(spec, dilation, "forward"), bias=bias, activation=activation)
    return y


def gated(
    x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, spec: MaskSpec, dilation: tuple[int, int],
    y: Tensor, features: Tensor | None,
) -> None:  # fmt: skip
    """As gated.reference, into y and features."""
    convolve(x, weight, y, _walk(spec, dilation, "forward"), bias=bias, gate=Gate(addend, features))


def gate_backward(grad_output: Tensor, features: Tensor, sums: Tensor | None) -> Tensor:
    return gate_gradient(grad_output, features, sums)


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
    grad_x, grad_weight, grad_bias = empty_gradients(x, weight, needs)
    if x.numel() == 0:
        return grad_x, grad_weight.zero_(), grad_bias.zero_()
    grad_output = gradient(grad_output, output, activation, sums=grad_bias if needs[2] else None)
    if needs[0]:
        convolve(grad_output, weight.transpose(0, 1), grad_x, _walk(spec, dilation, "backward"))
    if needs[1]:
        weight_gradient(grad_output, x, grad_weight, _walk(spec, dilation, "forward"))
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
        halves=spec.group_layout == "halves" and by_groups,
    )
