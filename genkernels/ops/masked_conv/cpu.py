"""The native CPU kernels of the masked convolution: layout and allocation around ``_C.masked_conv2d_*``."""

from __future__ import annotations

from torch import Tensor

from .mask import MaskSpec


def why_not(x: Tensor) -> str | None:
    """The reason why the native kernel cannot take x, or None where it can."""
    return "not built yet"


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: MaskSpec, dilation: tuple[int, int], activation: str
) -> Tensor:
    raise NotImplementedError


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
    raise NotImplementedError
