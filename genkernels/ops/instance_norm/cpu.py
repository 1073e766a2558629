"""The native CPU kernels: allocation around ``_C``; the functions are those of reference.py."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import backends
from ..core.activation import ACTIVATIONS
from ..core.dtypes import STORAGE
from ..core.strides import channels_adjoin


def _address(values: Tensor | None) -> int:
    return 0 if values is None else values.data_ptr()


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str, negative_slope: float, eps: float
) -> tuple[Tensor, Tensor]:
    y, statistics = torch.empty_like(x), torch.empty((2, x.shape[0], x.shape[1]))
    backends.require_native().instance_norm_forward(
        storage=STORAGE[x.dtype],
        threads=torch.get_num_threads(),
        sizes=_sizes(x),
        channels_last=channels_adjoin(x),
        x=x.data_ptr(),
        affine=(_address(weight), _address(bias)),
        eps=eps,
        activation=(ACTIVATIONS.index(activation), negative_slope),
        y=y.data_ptr(),
        statistics=statistics.data_ptr(),
    )
    return y, statistics


def backward(
    grad_output: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor,
    activation: str, negative_slope: float, needs_x: bool,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    grad_x = torch.empty_like(x) if needs_x else None
    sums = torch.empty_like(statistics)
    backends.require_native().instance_norm_backward(
        storage=STORAGE[x.dtype],
        threads=torch.get_num_threads(),
        sizes=_sizes(x),
        channels_last=channels_adjoin(x),
        grad=grad_output.data_ptr(),
        x=x.data_ptr(),
        affine=(_address(weight), _address(bias)),
        statistics=statistics.data_ptr(),
        activation=(ACTIVATIONS.index(activation), negative_slope),
        grad_x=_address(grad_x),
        sums=sums.data_ptr(),
    )
    return grad_x, sums
