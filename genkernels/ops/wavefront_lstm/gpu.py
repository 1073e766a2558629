"""The CUDA kernels of the wavefront LSTM: layout, allocation and small products around ``_C.cuda_wavefront_lstm_*``.

Images are walked with their channels next to each other: gates that are not channels_last are copied once, and a
result that is not is copied back. Everything is allocated here, by torch, on the caller's stream; the kernels allocate
nothing and wait for nothing, so a call can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ... import backends
from ..core.cuda_device import Device, device_of, float32_precision
from ..core.strides import channels_adjoin, strides_of
from .geometry import Geometry
from .schema import empty_grads, empty_hidden, empty_saved

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
    front = f"fronts of {gates.shape[2 if geometries[0].front == 'diagonal' else 3]} cells"
    if not plan.needed_bytes:
        return f"{front} are longer than the 1024 that the CUDA kernel takes"
    return (
        f"{front} of {gates.shape[1] // 4} units need {plan.needed_bytes} bytes of shared memory, "
        f"a block of this device has {device.limits[1]}"
    )


@dataclass(frozen=True)
class _Plan:
    """How the walks of a call are divided on a device."""

    native: Any
    fits: bool
    needed_bytes: int
    packed_bytes: tuple[int, int]  # forward, backward
    slices: int  # of the batch, backward


@lru_cache(maxsize=256)
def _plan(
    device: Device, storage: int, exact: bool, sizes: torch.Size, front: str, taps: tuple[int, ...], walks: int
) -> _Plan:
    batch, channels, height, width = sizes
    native = device.native.CudaWavefrontPlan(
        storage, exact, (batch, channels // 4, height, width), walks, front == "diagonal", list(taps), device.limits
    )
    forward, backward = native.forward_division(), native.backward_division()
    packed_bytes = (forward["packed_bytes"], backward["packed_bytes"])
    return _Plan(native, native.fits(), native.needed_bytes(), packed_bytes, backward["slices"])


def _plan_of(gates: Tensor, geometries: Sequence[Geometry]) -> tuple[Device, _Plan]:
    device = device_of(gates)
    exact = gates.dtype == torch.float32 and float32_precision() == "ieee"
    front, taps = geometries[0].front, geometries[0].taps
    return device, _plan(device, _STORAGE[gates.dtype], exact, gates.shape, front, taps, len(geometries))


def forward(walks: Sequence[Sequence[Tensor | None]], geometries: Sequence[Geometry], keep: bool) -> tuple[Tensor, ...]:
    """(gates, weight, h0, c0) of each walk -> hidden of each walk, and what backward needs where ``keep``."""
    gates = [_present(walk[0]) for walk in walks]
    hidden = [empty_hidden(one) for one in gates]
    saved = empty_saved(gates, keep)
    if hidden[0].numel() > 0:
        with device_of(gates[0]).current():
            _forward(walks, hidden, saved, geometries)
    return (*hidden, saved)


def _forward(
    walks: Sequence[Sequence[Tensor | None]],
    hidden: Sequence[Tensor],
    saved: Tensor,
    geometries: Sequence[Geometry],
) -> None:
    device, plan = _plan_of(_present(walks[0][0]), geometries)
    kept = []  # copies must live as long as the call
    natives = []
    targets = [one if _channels_adjoin(one) else _channels_last(one) for one in hidden]
    for (gates, *parameters), target, geometry in zip(walks, targets, geometries, strict=True):
        image = _readable(_present(gates))
        dense = [None if value is None else value.contiguous() for value in parameters]
        packed = image.new_empty(plan.packed_bytes[0], dtype=torch.uint8)
        kept += [image, packed, *dense]
        natives.append((geometry.mirrored, *_pixels(image), *_pixels(target), *map(_address, dense), _address(packed)))
    plan.native.forward(device.index, device.stream(), natives, _address(saved))
    for one, target in zip(hidden, targets, strict=True):
        if one is not target:
            one.copy_(target)


def backward(
    walks: Sequence[Sequence[Tensor | None]], saved: Tensor, geometries: Sequence[Geometry], needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    """(grad_hidden, gates, weight, h0, c0) of each walk -> gradients of gates, weight, h0, c0 of each."""
    wanted = [needs[4 * i : 4 * i + 4] for i in range(len(walks))]
    grads = [empty_grads(walk[1:], some) for walk, some in zip(walks, wanted, strict=True)]
    flat = tuple(grad for some in grads for grad in some)
    gates = _present(walks[0][1])
    if gates.numel() == 0:
        return tuple(grad.zero_() for grad in flat)
    with device_of(gates).current(), torch.autocast(gates.device.type, enabled=False):
        if saved.numel() == 0:
            inputs = [walk[1:] for walk in walks]
            images = [_present(walk[0]) for walk in inputs]
            saved = empty_saved(images, True)
            _forward(inputs, [empty_hidden(one) for one in images], saved, geometries)
        _backward(walks, saved, geometries, grads)
    return flat


def _backward(
    walks: Sequence[Sequence[Tensor | None]],
    saved: Tensor,
    geometries: Sequence[Geometry],
    grads: Sequence[Sequence[Tensor]],
) -> None:
    device, plan = _plan_of(_present(walks[0][1]), geometries)
    kept = []
    natives, results = [], []
    batch, units, height, width = _present(walks[0][0]).shape
    taps = len(geometries[0].taps)
    for (grad_hidden, gates, *parameters), geometry, (to_gates, to_weight, _, to_c0) in zip(
        walks, geometries, grads, strict=True
    ):
        image = _readable(_present(grad_hidden))
        dense = [None if value is None else value.contiguous() for value in parameters]
        packed = image.new_empty(plan.packed_bytes[1], dtype=torch.uint8)
        kept += [image, packed, *dense]
        in_place = to_gates.numel() > 0 and to_gates.is_contiguous(memory_format=torch.channels_last)
        # [N, H, W, 4h] and [N, H, W, taps, h]
        grad_gates = (to_gates if in_place else _channels_last(_present(gates))).permute(0, 2, 3, 1)
        taps_seen = (batch, height, width, taps, units) if to_weight.numel() else (0,)
        gathered = image.new_empty(taps_seen)
        grad_c0 = image.new_empty((plan.slices, units) if to_c0.numel() else (0,), dtype=torch.float32)
        results.append((grad_gates, gathered, grad_c0))
        natives.append(
            (
                geometry.mirrored,
                *_pixels(image),
                *map(_address, dense),
                _address(packed),
                grad_gates.data_ptr(),
                _address(gathered),
                _address(grad_c0),
            )
        )
    plan.native.backward(device.index, device.stream(), natives, _address(saved))
    for walk, geometry, (grad_gates, gathered, grad_c0), (to_gates, to_weight, to_h0, to_c0) in zip(
        walks, geometries, results, grads, strict=True
    ):
        if to_gates.numel() and to_gates.data_ptr() != grad_gates.data_ptr():
            to_gates.copy_(grad_gates.permute(0, 3, 1, 2))
        if to_weight.numel():
            # [4h, pixels] @ [pixels, taps * h]
            product = grad_gates.flatten(0, 2).t() @ gathered.flatten(3).flatten(0, 2)
            to_weight.copy_(product.unflatten(1, (-1, units)).transpose(0, 1))
        if to_h0.numel():
            to_h0.copy_(_grad_h0(grad_gates, _present(walk[2]), geometry))
        if to_c0.numel():
            to_c0.copy_(grad_c0.sum(0))


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


def _present(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


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
