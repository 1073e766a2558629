"""Kernels of instance norm by device, for images in one dense layout; fake kernels and registration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..core.device_choice import kernels_for
from ..core.dtypes import accumulator, as_dtype, per_channel
from ..core.layout import empty_grad_input, input_format
from ..core.verbose import like, log_choice
from . import cpu, reference, schema
from .derivatives import instance_norm_act, instance_norm_act_backward
from .schema import Options


def _backend(x: Tensor) -> ModuleType:
    return kernels_for(x, cpu, reference)


def log_call(choice: tuple[str, str], x: Tensor, weight: Tensor | None, bias: Tensor | None, options: Options) -> None:
    """Print the implementation that runs a call, and why."""
    activation = None if options.activation == "none" else options.activation
    negative_slope, eps = options.negative_slope, options.eps
    tensors = f"{like(x)}, {like(weight)}, {like(bias)}"
    line = f"genkernels.ops.instance_norm_act({tensors}, {eps=}, {activation=}, {negative_slope=})"
    log_choice("instance_norm_act", *choice, line)


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str, negative_slope: float, eps: float
) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return _forward_fake(x)
    memory_format = input_format(x)
    y, statistics = _backend(x).forward(
        x.contiguous(memory_format=memory_format),
        per_channel(weight, x),
        per_channel(bias, x),
        activation,
        negative_slope,
        eps,
    )
    return y.contiguous(memory_format=memory_format), statistics


def _backward(
    grad_output: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor,
    activation: str, negative_slope: float, eps: float, needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    memory_format = input_format(x)
    if x.numel() == 0:
        grad_x, sums = torch.zeros_like(x, memory_format=memory_format), statistics.new_zeros(statistics.shape)
    else:
        grad_x, sums = _backend(x).backward(
            grad_output.contiguous(memory_format=memory_format), x.contiguous(memory_format=memory_format),
            per_channel(weight, x), per_channel(bias, x), statistics, activation, negative_slope, needs[0],
        )  # fmt: skip

    def of(values: Tensor | None, each: Tensor, need: bool) -> Tensor:
        return as_dtype(each.sum(0), values.dtype) if need and values is not None else x.new_empty(0)

    return (
        grad_x.contiguous(memory_format=memory_format) if needs[0] else x.new_empty(0),
        of(weight, sums[0], needs[1]),
        of(bias, sums[1], needs[2]),
    )


# --- fake kernels ---------------------------------------------------------------------------------------------------


def _forward_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_grad_input(x), x.new_empty((2, x.shape[0], x.shape[1]), dtype=accumulator(x.dtype))


def _backward_fake(
    grad_output: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    needs = options[-1]

    def of(values: Tensor | None, need: bool) -> Tensor:
        return torch.empty_like(values) if need and values is not None else x.new_empty(0)

    return empty_grad_input(x) if needs[0] else x.new_empty(0), of(weight, needs[1]), of(bias, needs[2])


# --- registration --------------------------------------------------------------------------------------------------

instance_norm_act.use_kernel(_forward)
instance_norm_act.use_formula(reference.forward)
instance_norm_act_backward.use_kernel(_backward)
for _name, _kernel, _fake in (
    ("instance_norm_act", _forward, _forward_fake),
    ("instance_norm_act_backward", _backward, _backward_fake),
):
    schema.library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"genkernels::{_name}", _fake, lib=schema.library)
