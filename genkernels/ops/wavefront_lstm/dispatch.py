"""Which implementation runs, by device and by what it can; fake kernels, autocast and registration."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.autocast import cast, register_autocast
from . import cpu, cpu_layer, gpu, reference
from .derivatives import DifferentiableLstm, layers, moved_up, recurrences
from .geometry import Geometry
from .schema import RECURRENCES, BackwardCall, Direction, ForwardCall, Inputs, library

_Results = tuple[Tensor, ...]
_Forward = Callable[[ForwardCall], _Results]
_Backward = Callable[[BackwardCall], _Results]

# --- recurrences -----------------------------------------------------------------------------------------------

KERNELS: dict[str, ModuleType] = {"CPU": cpu, "CUDA": gpu}  # by dispatch key


def _forward_reference(call: ForwardCall) -> _Results:
    inputs = call.inputs
    hidden, saved = inputs.empty_hidden(), inputs.empty_saved(call.keep)
    for index, (own, geometry) in enumerate(zip(inputs.directions, inputs.geometries, strict=True)):
        h, trace = reference.forward(own.gates, own.weight, own.h0, own.c0, geometry)
        hidden[index].copy_(h)
        if call.keep:
            saved[index] = trace.transpose(0, 1).flatten(1)
    return (*hidden, saved)


def _formula(call: ForwardCall) -> _Results:
    """The recurrences in operators that a tracer can follow, without what backward needs."""
    return (*_hidden_by_formula(call.inputs), call.inputs.empty_saved(keep=False))


def _hidden_by_formula(inputs: Inputs) -> list[Tensor]:
    return [
        reference.forward(own.gates, own.weight, own.h0, own.c0, geometry)[0]
        for own, geometry in zip(inputs.directions, inputs.geometries, strict=True)
    ]


def _backward_reference(call: BackwardCall) -> _Results:
    inputs = call.inputs
    for index, (grad_hidden, own, geometry, grads) in enumerate(
        zip(call.grad_hidden, inputs.directions, inputs.geometries, call.grads.directions, strict=True)
    ):
        if call.saved.dim() == 3:
            trace = call.saved[index].unflatten(1, (-1, inputs.hidden_channels * 5)).transpose(0, 1)
        else:
            _, trace = reference.forward(own.gates, own.weight, own.h0, own.c0, geometry)
        found = reference.backward(grad_hidden, own.weight, own.h0, own.c0, trace, geometry)
        _fill((grads.gates, grads.weight, grads.h0, grads.c0), found)
    return tuple(call.grads.in_a_row)


def _fill(grads: Sequence[Tensor], values: Sequence[Any]) -> None:
    for grad, value in zip(grads, values, strict=True):
        if grad.numel():
            grad.copy_(value)


def _forward_native(key: str, call: ForwardCall) -> _Results:
    if not _can_run(key, call.inputs.image, call.inputs.geometries):
        return _forward_reference(call)
    return KERNELS[key].forward(call.inputs, call.keep)


def _backward_native(key: str, call: BackwardCall) -> _Results:
    if not _can_run(key, call.inputs.image, call.inputs.geometries):
        return _backward_reference(call)
    KERNELS[key].backward(call)
    return tuple(call.grads.in_a_row)


def _can_run(key: str, gates: Tensor, geometries: Sequence[Geometry]) -> bool:
    """Whether the native kernels take the call. Where a GPU is left to the slow way, a warning says why."""
    reason = KERNELS[key].why_not(gates, geometries)
    if reason and key == "CUDA" and gates.dtype != torch.float64:
        warnings.warn(f"wavefront LSTM step by step in plain PyTorch: {reason}", RuntimeWarning, stacklevel=2)
    return reason is None


# --- layers ----------------------------------------------------------------------------------------------------
# Where there is no kernel of the layer's own, it is its convolution and its recurrence, by whatever kernels these have.

_ops = torch.ops.genkernels
_CONVOLUTION = (1, "blocks", [1, 1], "none")  # no colour groups, no dilation, no activation


def _convolved(inputs: Inputs) -> Inputs:
    """The recurrence that is left of a layer after its convolution."""
    directions = [
        Direction(
            _ops.masked_conv2d(inputs.x, own.input_weight, own.input_bias, inputs.mask_type, *_CONVOLUTION),
            None, None, own.weight, own.h0, own.c0,
        )
        for own in inputs.directions
    ]  # fmt: skip
    return Inputs(None, None, directions, inputs.geometries)


def _forward_composed(call: ForwardCall) -> _Results:
    recurrence = RECURRENCES[len(call.inputs.directions)]
    with torch.autocast(call.inputs.image.device.type, enabled=False):
        arguments = recurrence.forward_in_a_row(_convolved(call.inputs), call.keep)
        hidden, *others, saved = recurrence.forward_op(*arguments)
    for right in others:
        hidden[:, :, 1:] += right[:, :, :-1]
    return hidden, saved


def _layer_formula(call: ForwardCall) -> _Results:
    """The layer in operators that a tracer can follow, without what backward needs."""
    hidden, *others = _hidden_by_formula(_convolved(call.inputs))
    for right in others:
        hidden = hidden + F.pad(right[:, :, :-1], (0, 0, 1, 0))
    return hidden, call.inputs.empty_saved(keep=False)


def _backward_composed(call: BackwardCall) -> _Results:
    inputs, grads, (grad_hidden,) = call.inputs, call.grads, call.grad_hidden
    needs_x = grads.image.numel() > 0
    needs = [Direction(None, *(grad.numel() > 0 for grad in own[1:])) for own in grads.directions]
    needs = [own._replace(gates=needs_x or own.input_weight or own.input_bias) for own in needs]
    recurrence = RECURRENCES[len(inputs.directions)]
    grad_x: Any = None
    with torch.autocast(inputs.image.device.type, enabled=False):
        grads_hidden = [grad_hidden, *(moved_up(grad_hidden) for _ in inputs.directions[1:])]
        arguments = recurrence.backward_in_a_row(grads_hidden, _convolved(inputs), call.saved, needs)
        found = recurrence.by_direction(recurrence.backward_op(*arguments))
        for own, need, grad, to in zip(inputs.directions, needs, grads.directions, found, strict=True):
            if need.gates:
                to_x, *to_input = _ops.masked_conv2d_backward(
                    to.gates, inputs.x, own.input_weight, None, inputs.mask_type, *_CONVOLUTION,
                    [needs_x, need.input_weight, need.input_bias],
                )  # fmt: skip
                grad_x = to_x if grad_x is None else grad_x + to_x
                _fill((grad.input_weight, grad.input_bias), to_input)
            _fill((grad.weight, grad.h0, grad.c0), (to.weight, to.h0, to.c0))
    _fill([grads.image], [grad_x])
    return tuple(grads.in_a_row)


def _forward_layer_cpu(call: ForwardCall) -> _Results:
    if cpu_layer.why_not(call.inputs.image) is not None:
        return _forward_composed(call)
    return cpu_layer.forward(call.inputs, call.keep)


def _backward_layer_cpu(call: BackwardCall) -> _Results:
    if cpu_layer.why_not(call.inputs.image) is not None:
        return _backward_composed(call)
    cpu_layer.backward(call)
    return tuple(call.grads.in_a_row)


# --- registration ----------------------------------------------------------------------------------------------


class _Kernels(NamedTuple):
    """What runs for one dispatch key."""

    forward: _Forward
    backward: _Backward


_RECURRENCE_KERNELS = {
    "CompositeExplicitAutograd": _Kernels(_forward_reference, _backward_reference),
    "CPU": _Kernels(partial(_forward_native, "CPU"), partial(_backward_native, "CPU")),
    "CUDA": _Kernels(partial(_forward_native, "CUDA"), partial(_backward_native, "CUDA")),
}
_LAYER_KERNELS = {
    "CompositeExplicitAutograd": _Kernels(_forward_composed, _backward_composed),
    "CPU": _Kernels(_forward_layer_cpu, _backward_layer_cpu),
}


def _fake_forward(call: ForwardCall) -> _Results:
    return (*call.inputs.empty_hidden(), call.inputs.empty_saved(call.keep))


def _fake_backward(call: BackwardCall) -> _Results:
    return tuple(call.grads.in_a_row)


def _register(lstm: DifferentiableLstm, kernels: dict[str, _Kernels], formula: _Forward) -> None:
    """Give an operator its kernels, which the dispatcher calls with arguments in a row."""
    operator = lstm.operator
    forward_name, backward_name = operator.name, f"{operator.name}_backward"

    def forward(kernel: _Forward) -> Callable[..., _Results]:
        return lambda *arguments: kernel(operator.forward_call(arguments))

    def backward(kernel: _Backward) -> Callable[..., _Results]:
        return lambda *arguments: kernel(operator.backward_call(arguments))

    for key, kernel in kernels.items():
        library.impl(forward_name, forward(kernel.forward), key)
        library.impl(backward_name, backward(kernel.backward), key)
    torch.library.register_fake(f"genkernels::{forward_name}", forward(_fake_forward), lib=library)
    torch.library.register_fake(f"genkernels::{backward_name}", backward(_fake_backward), lib=library)
    lstm.forward.use_kernel(forward(kernels["CPU"].forward))
    lstm.backward.use_kernel(backward(kernels["CPU"].backward))
    lstm.forward.use_formula(forward(formula))
    register_autocast(library, operator.forward_op, lstm.forward, _cast_inputs)


def _cast_inputs(dtype: torch.dtype, *inputs: Any) -> list[Any]:
    return [cast(value, dtype) for value in inputs]


for _lstm in recurrences.values():
    _register(_lstm, _RECURRENCE_KERNELS, _formula)
for _lstm in layers.values():
    _register(_lstm, _LAYER_KERNELS, _layer_formula)
