"""The CUDA kernels of the wavefront LSTM: layout, allocation and small products around ``_C.cuda_wavefront_lstm_*``.

The kernels read and write images whose channels are next to each other: gates that are not channels_last are copied
once, and a result that is not is copied back. Everything is allocated here, by torch, on the caller's stream; the
kernels allocate nothing and wait for nothing, so a call can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import backends
from ..core.cuda_device import Device, device_of, float32_precision
from ..core.strides import channels_adjoin, strides_of
from .geometry import Geometry
from .schema import BackwardCall, Direction, Inputs

_STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_TAPS = 32


def why_not(gates: Tensor, geometries: Sequence[Geometry]) -> str | None:
    """The reason why the kernels cannot take gates, or None where they can.

    It depends on nothing that may differ between forward and backward, so both take the same way.
    """
    if gates.dtype not in _STORAGE:
        return f"there is no CUDA kernel for {gates.dtype}"
    taps = geometries[0].taps
    if len(taps) > MAX_TAPS:
        return f"the CUDA kernel takes at most {MAX_TAPS} taps; got {len(taps)}"
    if gates.is_cuda and not hasattr(backends.native(), "CudaWavefrontPlan"):
        return "the native extension is missing or was built without CUDA kernels"
    if gates.numel() == 0:
        return None
    device, plan = _plan_of(gates, geometries)
    if plan.fits:
        return None
    step = f"steps of {gates.shape[2 if geometries[0].front == 'diagonal' else 3]} cells"
    if not plan.needed_bytes:
        return f"{step} are longer than the 1024 that the CUDA kernel takes"
    return (
        f"{step} of {gates.shape[1] // 4} hidden units need {plan.needed_bytes} bytes of shared memory, "
        f"a block of this device has {device.limits[1]}"
    )


@dataclass(frozen=True)
class _Plan:
    """How the directions of a call are divided on a device."""

    native: Any
    fits: bool
    needed_bytes: int
    packed_bytes: tuple[int, int]  # forward, backward
    slices: int  # of the batch, backward


@lru_cache(maxsize=256)
def _plan(
    device: Device, storage: int, exact: bool, gates: torch.Size, front: str, taps: tuple[int, ...], directions: int
) -> _Plan:
    batch, channels, height, width = gates
    native = device.native.CudaWavefrontPlan(
        storage=storage,
        exact=exact,
        sizes=(batch, channels // 4, height, width),
        directions=directions,
        diagonal=front == "diagonal",
        taps=taps,
        limits=device.limits,
    )
    forward, backward = native.forward_division(), native.backward_division()
    packed_bytes = (forward["packed_bytes"], backward["packed_bytes"])
    return _Plan(native, native.fits(), native.needed_bytes(), packed_bytes, backward["slices"])


def _plan_of(gates: Tensor, geometries: Sequence[Geometry]) -> tuple[Device, _Plan]:
    device = device_of(gates)
    exact = gates.dtype == torch.float32 and float32_precision() == "ieee"
    front, taps = geometries[0].front, geometries[0].taps
    return device, _plan(device, _STORAGE[gates.dtype], exact, gates.shape, front, taps, len(geometries))


def forward(inputs: Inputs, keep: bool) -> tuple[Tensor, ...]:
    """Hidden of each direction, and what backward needs where ``keep``."""
    hidden, saved = inputs.empty_hidden(), inputs.empty_saved(keep)
    if hidden[0].numel() > 0:
        with device_of(inputs.image).current():
            _forward(inputs, hidden, saved)
    return (*hidden, saved)


def _forward(inputs: Inputs, hidden: Sequence[Tensor], saved: Tensor) -> None:
    device, plan = _plan_of(inputs.image, inputs.geometries)
    kept: list[Tensor | None] = []  # copies must live as long as the call
    directions = []
    targets = [one if _channels_adjoin(one) else _channels_last(one) for one in hidden]
    for own, target, geometry in zip(inputs.directions, targets, inputs.geometries, strict=True):
        gates = _readable(own.gates)
        weight, h0, c0 = dense = _dense(own)
        packed = gates.new_empty(plan.packed_bytes[0], dtype=torch.uint8)
        kept += [gates, packed, *dense]
        directions.append(
            device.native.CudaWavefrontForward(
                mirrored=geometry.mirrored,
                gates=_pixels(gates),
                hidden=_pixels(target),
                weight=_address(weight),
                h0=_address(h0),
                c0=_address(c0),
                packed=_address(packed),
            )
        )
    plan.native.forward(device=device.index, stream=device.stream(), directions=directions, saved=_address(saved))
    for one, target in zip(hidden, targets, strict=True):
        if one is not target:
            one.copy_(target)


def backward(call: BackwardCall) -> None:
    """Writes the gradients of gates, weight, h0, c0 of each direction."""
    inputs, saved = call.inputs, call.saved
    if inputs.image.numel() == 0:
        for grad in call.grads.in_a_row:
            grad.zero_()
        return
    with device_of(inputs.image).current(), torch.autocast(inputs.image.device.type, enabled=False):
        if saved.numel() == 0:
            saved = inputs.empty_saved(keep=True)
            _forward(inputs, inputs.empty_hidden(), saved)
        _backward(call.grad_hidden, inputs, saved, call.grads.directions)


class _Results(NamedTuple):
    """What the backward kernel writes for one direction."""

    grad_gates: Tensor  # [N, H, W, 4h]
    gathered: Tensor  # [N, H, W, taps, h], the h that each tap of a pixel reads; or [0]
    grad_c0: Tensor  # [slices, h]; or [0]


def _backward(grad_hidden: Sequence[Tensor], inputs: Inputs, saved: Tensor, grads: Sequence[Direction]) -> None:
    device, plan = _plan_of(inputs.image, inputs.geometries)
    kept: list[Tensor | None] = []
    directions, results = [], []
    for grad, own, geometry, to in zip(grad_hidden, inputs.directions, inputs.geometries, grads, strict=True):
        image = _readable(grad)
        weight, h0, c0 = dense = _dense(own)
        packed = image.new_empty(plan.packed_bytes[1], dtype=torch.uint8)
        result = _empty_results(image, own, to, plan)
        kept += [image, packed, *dense]
        results.append(result)
        directions.append(
            device.native.CudaWavefrontBackward(
                mirrored=geometry.mirrored,
                grad_hidden=_pixels(image),
                weight=_address(weight),
                h0=_address(h0),
                c0=_address(c0),
                packed=_address(packed),
                grad_gates=result.grad_gates.data_ptr(),
                gathered=_address(result.gathered),
                grad_c0=_address(result.grad_c0),
            )
        )
    plan.native.backward(device=device.index, stream=device.stream(), directions=directions, saved=_address(saved))
    for own, geometry, result, to in zip(inputs.directions, inputs.geometries, results, grads, strict=True):
        _finish(own, geometry, result, to)


def _empty_results(grad_hidden: Tensor, own: Direction, to: Direction, plan: _Plan) -> _Results:
    batch, hidden, height, width = grad_hidden.shape
    in_place = to.gates.numel() > 0 and to.gates.is_contiguous(memory_format=torch.channels_last)
    grad_gates = (to.gates if in_place else _channels_last(own.gates)).permute(0, 2, 3, 1)
    gathered = (batch, height, width, own.weight.shape[0], hidden) if to.weight.numel() else (0,)
    grad_c0 = (plan.slices, hidden) if to.c0.numel() else (0,)
    return _Results(grad_gates, grad_hidden.new_empty(gathered), grad_hidden.new_empty(grad_c0, dtype=torch.float32))


def _finish(own: Direction, geometry: Geometry, result: _Results, to: Direction) -> None:
    """Writes the gradients of one direction."""
    grad_gates = result.grad_gates
    if to.gates.numel() and to.gates.data_ptr() != grad_gates.data_ptr():
        to.gates.copy_(grad_gates.permute(0, 3, 1, 2))
    if to.weight.numel():
        # [4h, pixels] @ [pixels, taps * h]
        product = grad_gates.flatten(0, 2).t() @ result.gathered.flatten(3).flatten(0, 2)
        to.weight.copy_(product.unflatten(1, (-1, own.weight.shape[2])).transpose(0, 1))
    if to.h0.numel():
        to.h0.copy_(_grad_h0(grad_gates, own.weight, geometry))
    if to.c0.numel():
        to.c0.copy_(result.grad_c0.sum(0))


def _grad_h0(grad_gates: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of h0, [h], from that of the gates [N, H, W, 4h]: what the pixels at the border read it with."""
    height, width = grad_gates.shape[1:3]
    total = grad_gates.new_zeros(weight.shape[2], dtype=torch.float32)
    for matrix, (dy, dx) in zip(weight, geometry.offsets(), strict=True):
        above = min(-dy, height)  # a tap never reads below
        beside = slice(0, min(-dx, width)) if dx < 0 else slice(max(width - dx, 0), width)
        outside = [grad_gates[:, :above], grad_gates[:, above:, beside]]
        summed = sum(part.sum((0, 1, 2), dtype=torch.float32) for part in outside)
        total = total + summed @ matrix.float()
    return total


def _dense(own: Direction) -> list[Tensor | None]:
    """weight, h0 and c0."""
    return [None if value is None else value.contiguous() for value in (own.weight, own.h0, own.c0)]


def _channels_adjoin(image: Tensor) -> bool:
    return image.shape[1] == 1 or channels_adjoin(image)


def _channels_last(like: Tensor) -> Tensor:
    """A tensor of that shape, not yet written, dense in the order N, H, W, C."""
    batch, channels, height, width = like.shape
    return like.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)


def _readable(image: Tensor) -> Tensor:
    """The image itself where its channels are next to each other, else a copy."""
    return image if _channels_adjoin(image) else _channels_last(image).copy_(image)


def _address(t: Tensor | None) -> int:
    return 0 if t is None or t.numel() == 0 else t.data_ptr()


def _pixels(image: Tensor) -> tuple[int, tuple[int, int, int]]:
    """Address and strides of [N, H, W] of an image [N, C, H, W]."""
    n, _, h, w = strides_of(image)
    return image.data_ptr(), (n, h, w)
