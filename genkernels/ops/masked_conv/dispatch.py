"""Kernels of the masked convolution by device; fake kernels, autocast and registration.

On the CPU the gate is a pass of its own, in PyTorch's operators; so are the convolution's colours, masked onto its
weight there, since two halves of colours are out of the order in which the CPU kernel skips them.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..core.autocast import cast, register_autocast
from ..core.device_choice import description, kernels_for, why_no_kernel
from ..core.layout import empty_gradients, empty_output, input_format, output_format
from ..core.prepared_call import Key, PreparedCall
from ..core.verbose import like, log_choice
from . import cpu, reference, schema
from .derivatives import backward, forward, gated
from .schema import GatedOptions, Options

_Needs = tuple[bool, bool, bool]


def _backend(x: Tensor) -> ModuleType:
    return kernels_for(x, cpu, reference)


def log_call(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> None:
    """Print what runs a call of masked_conv2d, and why."""
    mask_type, channel_groups, group_layout, dilation, _ = options
    activation = None if options.activation == "none" else options.activation
    tensors = f"{like(x)}, {like(weight)}, {like(bias)}"
    log_choice(
        "masked_conv2d",
        *description(x, "it skips what is masked"),
        f"genkernels.ops.masked_conv2d({tensors}, {mask_type=}, {channel_groups=}, {group_layout=}, {dilation=}, "
        f"{activation=})",
    )


def keep_prepared(key: Key, x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> None:
    """From now on calls of this key go straight to the native kernel, where their layouts leave nothing open."""
    if why_no_kernel(x) is not None:
        return
    launcher = cpu.prepare(x, weight, bias, options.spec(weight), options.dilation_pair(), options.activation)
    if launcher is not None:
        forward.keep(key, PreparedCall(options, (), launcher.forward, launcher.backward))


# --- masked_conv2d -------------------------------------------------------------------------------------------------


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    mask_type: str, channel_groups: int, group_layout: str, dilation: Sequence[int], activation: str,
) -> Tensor:  # fmt: skip
    options = Options(mask_type, channel_groups, group_layout, dilation, activation)
    backend = _backend(x)
    y = backend.forward(x, weight, bias, options.spec(weight), options.dilation_pair(), activation)
    return y if backend is not reference else y.contiguous(memory_format=output_format(x, weight))


def _backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None,
    mask_type: str, channel_groups: int, group_layout: str, dilation: Sequence[int], activation: str, needs: _Needs,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    options = Options(mask_type, channel_groups, group_layout, dilation, activation)
    backend = _backend(x)
    grads = backend.backward(
        grad_output, x, weight, output, options.spec(weight), options.dilation_pair(), activation, needs
    )
    if backend is not reference:
        return grads
    grad_x, grad_weight, grad_bias = grads
    return (
        x.new_empty(0) if grad_x is None else grad_x.contiguous(memory_format=input_format(x)),
        x.new_empty(0) if grad_weight is None else torch.empty_like(weight).copy_(grad_weight),
        x.new_empty(0) if grad_bias is None else grad_bias,
    )


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    return empty_output(x, weight)


def _backward_fake(
    grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients(x, weight, needs=options[-1])


def _formula(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    given = Options(*options)
    return reference.forward(x, weight, bias, given.spec(weight), given.dilation_pair(), given.activation)


# --- masked_conv2d_gated and masked_conv2d_gate_backward -----------------------------------------------------------


def gate_is_fused(x: Tensor) -> bool:
    """Whether gate and convolution are one operator."""
    return x.is_cuda  # replaced where the GPU's kernels are tested without one


def _runs_triton(x: Tensor) -> bool:
    return x.is_cuda and why_no_kernel(x) is None


def _gated(
    x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    given = GatedOptions(*options)
    convolution = given.convolution()
    y, features = _empty_gated(x, weight, given.keep)
    if _runs_triton(x):
        from . import gpu  # here, since it imports Triton

        kept = features if given.keep else None
        gpu.gated(x, weight, bias, addend, convolution.spec(weight), convolution.dilation_pair(), y, kept)
        return y, features
    made = reference.gated_features(x, weight, bias, addend, convolution.spec(weight), convolution.dilation_pair())
    return y.copy_(reference.gate(made)), features.copy_(made) if given.keep else features


def _gate_backward(grad_output: Tensor, features: Tensor, sums: bool) -> tuple[Tensor, Tensor]:
    total = features.new_empty(features.shape[1] if sums else 0)
    if _runs_triton(features) and features.numel() > 0:
        from . import gpu

        return gpu.gate_backward(grad_output, features, total if sums else None), total
    through = reference.through_gate(grad_output, features)
    g = torch.empty_like(features, memory_format=torch.channels_last).copy_(through)
    return g, total.copy_(g.sum((0, 2, 3))) if sums else total


def _empty_gated(x: Tensor, weight: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """y and features, not yet written; features always as the tensor cores leave them."""
    n, _, height, width = x.shape
    channels = weight.shape[0]

    def empty(channels: int, memory_format: torch.memory_format) -> Tensor:
        shape = (n, channels, height, width)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)

    y = empty(channels // 2, output_format(x, weight))
    return y, empty(channels, torch.channels_last) if keep else x.new_empty(0)


def _gated_fake(x: Tensor, weight: Tensor, bias: Any, addend: Any, *options: Any) -> tuple[Tensor, Tensor]:
    return _empty_gated(x, weight, GatedOptions(*options).keep)


def _gate_backward_fake(grad_output: Tensor, features: Tensor, sums: bool) -> tuple[Tensor, Tensor]:
    g = torch.empty_like(features, memory_format=torch.channels_last)
    return g, features.new_empty(features.shape[1] if sums else 0)


def _gated_formula(
    x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    given = GatedOptions(*options)
    convolution = given.convolution()
    made = reference.gated_features(x, weight, bias, addend, convolution.spec(weight), convolution.dilation_pair())
    return reference.gate(made), made if given.keep else x.new_empty(0)


# --- registration --------------------------------------------------------------------------------------------------


def _cast_all(dtype: torch.dtype, **tensors: Any) -> list[Any]:
    """In the dtype of autocast, x first; float64 stays, as it does for PyTorch's own convolutions."""
    result = {name: cast(tensor, dtype) for name, tensor in tensors.items()}
    x = tensors["x"]
    for name, tensor in result.items():
        if tensor is not None and tensor.dtype != result["x"].dtype:
            raise TypeError(f"{name}: expected the dtype of x, {x.dtype}; got {tensor.dtype}")
    return [*result.values()]


def _autocast(dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> list[Any]:
    return [*_cast_all(dtype, x=x, weight=weight, bias=bias), *options]


def _autocast_gated(
    dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, *options: Any
) -> list[Any]:
    return [*_cast_all(dtype, x=x, weight=weight, bias=bias, addend=addend), *options]


forward.use_kernel(_forward)
forward.use_formula(_formula)
backward.use_kernel(_backward)
gated.use_formula(_gated_formula)
register_autocast(schema.library, schema.forward_op, forward, _autocast)
register_autocast(schema.library, schema.gated_op, gated, _autocast_gated, device_types=["cuda"])
for _name, _kernel, _fake in (
    ("masked_conv2d", _forward, _forward_fake),
    ("masked_conv2d_backward", _backward, _backward_fake),
    ("masked_conv2d_gated", _gated, _gated_fake),
    ("masked_conv2d_gate_backward", _gate_backward, _gate_backward_fake),
):
    schema.library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"genkernels::{_name}", _fake, lib=schema.library)
