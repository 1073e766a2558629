"""Launches of the masked convolution on a GPU: its taps and colour groups as the implicit GEMM's geometry.

Forward and input gradient are one kernel (triton_conv/forward.py): the input gradient is the same sum with the shifts
negated and the weight's channels exchanged. Only live taps are walked. The layout of the tensor cores is
channels_last: with 16 channels and more, other inputs are copied to it once and contiguous results from it.

Backward first takes the ReLU's slope and the bias gradient in one pass (triton_conv/gradient.py), which without ReLU
and with channels innermost only reads, for the bias, or does not run. Under a gate the same pass makes the gradient of
both halves.
"""

from __future__ import annotations

from torch import Tensor

from ...triton_conv.forward import Gate, convolve
from ...triton_conv.gradient import gate_gradient, gradient
from ...triton_conv.tap_geometry import TapGeometry
from ...triton_conv.weight_gradient import weight_gradient
from ..core.layout import empty_gradients, empty_output
from .mask import MaskSpec


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: MaskSpec, dilation: tuple[int, int], activation: str
) -> Tensor:
    """As cpu.forward."""
    y = empty_output(x, weight)
    convolve(x, weight, y, _tap_geometry(spec, dilation, "forward"), bias=bias, activation=activation)
    return y


def gated(
    x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, spec: MaskSpec, dilation: tuple[int, int],
    y: Tensor, features: Tensor | None,
) -> None:  # fmt: skip
    """As gated.reference, into y and features."""
    convolve(x, weight, y, _tap_geometry(spec, dilation, "forward"), bias=bias, gate=Gate(addend, features))


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
        convolve(grad_output, weight.transpose(0, 1), grad_x, _tap_geometry(spec, dilation, "backward"))
    if needs[1]:
        weight_gradient(grad_output, x, grad_weight, _tap_geometry(spec, dilation, "forward"))
    return grad_x, grad_weight, grad_bias


def _tap_geometry(spec: MaskSpec, dilation: tuple[int, int], direction: str) -> TapGeometry:
    reach = tuple(k // 2 * d for k, d in zip(spec.kernel, dilation, strict=True))
    sign = 1 if direction == "forward" else -1
    by_groups = spec.channel_groups > 1
    return TapGeometry(
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
