"""Kernels of the operators by device, from a backend's six functions (see reference.py); registration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..core.activation import Activation
from ..core.autocast import cast, register_autocast
from ..core.device_choice import kernels_for
from ..core.dtypes import accumulator, per_channel
from ..core.layout import empty_grad_input, input_format, output_format
from . import cpu, distributed, reference, schema
from .derivatives import conv_act, conv_act_backward, conv_bn_act, conv_bn_act_backward
from .geometry import GradientMeans, Norm, empty_output, geometry_of


def _backend(x: Tensor) -> ModuleType:
    return kernels_for(x, cpu, reference)


def _filled(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient of x or weight as promised: in their layout, empty where it is not wanted."""
    if gradient is None:
        return like.new_empty(0)
    return gradient if gradient.stride() == like.stride() else torch.empty_like(like).copy_(gradient)


def _image(gradient: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if gradient is None else gradient.contiguous(memory_format=input_format(x))


# --- without batch norm ------------------------------------------------------------------------------------------


def _conv_act(x: Tensor, *inputs: Any) -> Tensor:
    return _conv_act_by(_backend(x), x, *inputs)


def _conv_act_by(
    backend: ModuleType, x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None,
    transposed: bool, stride: Sequence[int], padding: Sequence[int], output_padding: Sequence[int],
    activation: str, negative_slope: float,
) -> Tensor:  # fmt: skip
    geometry = geometry_of(transposed, stride, padding, output_padding)
    act = Activation(activation, negative_slope)
    y = backend.forward(x, weight, per_channel(scale, x), per_channel(shift, x), geometry, act)
    return y.contiguous(memory_format=output_format(x, weight))


def _conv_act_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None,
    transposed: bool, stride: Sequence[int], padding: Sequence[int], output_padding: Sequence[int],
    activation: str, negative_slope: float, needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    geometry = geometry_of(transposed, stride, padding, output_padding)
    grad_x, grad_weight, grad_shift = _backend(x).backward(
        grad_output, x, weight, output, geometry, Activation(activation, negative_slope), tuple(needs)
    )
    empty = x.new_empty(0, dtype=accumulator(x.dtype))
    return _image(grad_x, x), _filled(grad_weight, weight), empty if grad_shift is None else grad_shift


# --- with batch norm, in training ----------------------------------------------------------------------------------


def _conv_bn_act(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _conv_bn_act_by(_backend(x), x, *inputs)


def _conv_bn_act_by(
    backend: ModuleType, x: Tensor, weight: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None,
    transposed: bool, stride: Sequence[int], padding: Sequence[int], output_padding: Sequence[int],
    activation: str, negative_slope: float, eps: float, group: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    geometry = geometry_of(transposed, stride, padding, output_padding)
    memory_format = output_format(x, weight)
    if x.shape[0] == 0:
        z = empty_output(x, weight, geometry)
        mean = deviations = z.new_zeros(z.shape[1], dtype=accumulator(x.dtype))
    else:
        z, mean, deviations = backend.statistics(x, weight, geometry)
        z = z.contiguous(memory_format=memory_format)
    statistics = distributed.combine_statistics(mean, deviations, z.numel() // z.shape[1], group)
    if x.shape[0] == 0:
        return z.clone(), z, statistics
    rstd = (statistics[1] + eps).rsqrt()
    norm = Norm(mean=statistics[0], rstd=rstd, weight=per_channel(bn_weight, x), bias=per_channel(bn_bias, x))
    y = backend.normalise(z, norm, Activation(activation, negative_slope))
    return y.contiguous(memory_format=memory_format), z, statistics


def _conv_bn_act_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None,
    z: Tensor, statistics: Tensor,
    transposed: bool, stride: Sequence[int], padding: Sequence[int], output_padding: Sequence[int],
    activation: str, negative_slope: float, eps: float, group: str, needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    geometry = geometry_of(transposed, stride, padding, output_padding)
    backend = _backend(x)
    mean, variance, count = statistics
    rstd = (variance + eps).rsqrt()
    norm = Norm(mean=mean, rstd=rstd, weight=per_channel(bn_weight, x), bias=per_channel(bn_bias, x))
    act = Activation(activation, negative_slope)
    if x.shape[0] == 0:
        sums = mean.new_zeros(2, mean.shape[0])
    else:
        sums = torch.stack(backend.gradient_sums(grad_output, z, norm, act))
    means = GradientMeans(*(distributed.add_over_processes(sums, group) / count.clamp(min=1)))
    if x.shape[0] == 0:
        grad_x = torch.zeros_like(x) if needs[0] else None
        grad_weight = torch.zeros_like(weight) if needs[1] else None
    elif needs[0] or needs[1]:
        grad_x, grad_weight = backend.backward_with_norm(
            grad_output, x, weight, z, norm, means, geometry, act, tuple(needs[:2])
        )
    else:
        grad_x = grad_weight = None

    def of(values: Tensor | None, total: Tensor, need: bool) -> Tensor:
        return total.to(values.dtype, copy=True) if need and values is not None else x.new_empty(0)

    return (
        _image(grad_x, x),
        _filled(grad_weight, weight),
        of(bn_weight, sums[1], needs[2]),
        of(bn_bias, sums[0], needs[3]),
    )


# --- fake kernels ---------------------------------------------------------------------------------------------------


def _conv_act_fake(x: Tensor, weight: Tensor, scale: Any, shift: Any, *options: Any) -> Tensor:
    return empty_output(x, weight, geometry_of(*options[:4]))


def _conv_act_backward_fake(
    grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    needs = options[-1]
    return (
        empty_grad_input(x) if needs[0] else x.new_empty(0),
        torch.empty_like(weight) if needs[1] else x.new_empty(0),
        x.new_empty(geometry_of(*options[:4]).out_channels(weight) if needs[2] else 0, dtype=accumulator(x.dtype)),
    )


def _conv_bn_act_fake(
    x: Tensor, weight: Tensor, bn_weight: Any, bn_bias: Any, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    y = empty_output(x, weight, geometry_of(*options[:4]))
    return y, torch.empty_like(y), x.new_empty((3, y.shape[1]), dtype=accumulator(x.dtype))


def _conv_bn_act_backward_fake(
    grad_output: Tensor, x: Tensor, weight: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None,
    z: Tensor, statistics: Tensor, *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    needs = options[-1]

    def of(values: Tensor | None, need: bool) -> Tensor:
        return torch.empty_like(values) if need and values is not None else x.new_empty(0)

    return (
        empty_grad_input(x) if needs[0] else x.new_empty(0),
        torch.empty_like(weight) if needs[1] else x.new_empty(0),
        of(bn_weight, needs[2]),
        of(bn_bias, needs[3]),
    )


# --- registration --------------------------------------------------------------------------------------------------


def _autocast(dtype: torch.dtype, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Any, ...]:
    """Images and weight as for a convolution; per-channel values stay, as for a batch norm."""
    x, weight = cast(x, dtype), cast(weight, dtype)
    if weight.dtype != x.dtype:
        raise TypeError(f"weight: expected the dtype of x, {x.dtype}; got {weight.dtype}")
    return x, weight, *rest


conv_act.use_kernel(_conv_act)
conv_act.use_formula(partial(_conv_act_by, reference))
conv_act_backward.use_kernel(_conv_act_backward)
conv_bn_act.use_kernel(_conv_bn_act)
conv_bn_act.use_formula(partial(_conv_bn_act_by, reference))
conv_bn_act_backward.use_kernel(_conv_bn_act_backward)
register_autocast(schema.library, schema.conv_act_op, conv_act, _autocast)
register_autocast(schema.library, schema.conv_bn_act_op, conv_bn_act, _autocast)
for _name, _kernel, _fake in (
    ("conv_act", _conv_act, _conv_act_fake),
    ("conv_act_backward", _conv_act_backward, _conv_act_backward_fake),
    ("conv_bn_act", _conv_bn_act, _conv_bn_act_fake),
    ("conv_bn_act_backward", _conv_bn_act_backward, _conv_bn_act_backward_fake),
):
    schema.library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"genkernels::{_name}", _fake, lib=schema.library)
