"""The native CPU kernels of the wavefront LSTM: layout and allocation around ``_C.wavefront_lstm_*``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import backends
from .geometry import Geometry
from .schema import empty_grads, empty_hidden, empty_saved

_STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NO_STRIDES = (0, 0, 0, 0)


def why_not(gates: Tensor, geometries: Sequence[Geometry]) -> str | None:
    """The reason why the native kernel cannot take gates, or None where it can."""
    if backends.native() is None:
        return "the native extension is not loaded"
    if gates.dtype not in _STORAGE:
        return f"no native kernel for {gates.dtype}"
    return None


def forward(walks: Sequence[Sequence[Tensor | None]], geometries: Sequence[Geometry], keep: bool) -> tuple[Tensor, ...]:
    """(gates, weight, h0, c0) of each walk -> hidden of each walk, and what backward needs where ``keep``."""
    gates = [_present(walk[0]) for walk in walks]
    hidden = [empty_hidden(one) for one in gates]
    saved = empty_saved(gates, keep)
    if hidden[0].numel() > 0:
        forward_into(hidden, saved if keep else None, walks, geometries)
    return (*hidden, saved)


def forward_into(
    hidden: Sequence[Tensor],
    saved: Tensor | None,
    walks: Sequence[Sequence[Tensor | None]],
    geometries: Sequence[Geometry],
) -> None:
    """h written to ``hidden`` of each walk, and what backward needs to ``saved`` [walks, N, H * W * 5h] if there.

    The gates may be those of :func:`gates_within` saved: then they are overwritten in place.
    """
    _run("forward", walks, hidden, saved, geometries)


def gates_within(saved: Tensor, units: int, size: Sequence[int]) -> Tensor:
    """The part of ``saved`` [N, H * W * 5h] of one walk that holds the gates: [N, 4h, H, W], channels_last."""
    height, width = size
    shape, strides = (saved.shape[0], 4 * units, height, width), (saved.stride(0), 1, 4 * units * width, 4 * units)
    return saved.as_strided(shape, strides)


def backward(
    walks: Sequence[Sequence[Tensor | None]], saved: Tensor, geometries: Sequence[Geometry], needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    """(grad_hidden, gates, weight, h0, c0) of each walk -> gradients of gates, weight, h0, c0 of each.

    h is not asked for: the kernel recovers it, in float32, from ``saved`` or from the gates.
    """
    wanted = [needs[4 * i : 4 * i + 4] for i in range(len(walks))]
    grads = [empty_grads(walk[1:], some) for walk, some in zip(walks, wanted, strict=True)]
    flat = tuple(grad for some in grads for grad in some)
    if _present(walks[0][0]).numel() == 0:
        return tuple(grad.zero_() for grad in flat)
    backward_into(grads, walks, saved if saved.numel() else None, geometries)
    return flat


def backward_into(
    grads: Sequence[Sequence[Tensor | None]],
    walks: Sequence[Sequence[Tensor | None]],
    saved: Tensor | None,
    geometries: Sequence[Geometry],
) -> None:
    """The gradients of (gates, weight, h0, c0) written to ``grads`` of each walk; None or [0] is not wanted.

    With ``saved`` the gates give their shape alone. Without it they are read, and their gradient may take their place.
    """
    grad_hidden = [_readable(_present(walk[0])) for walk in walks]
    _run(
        "backward",
        [walk[1:] for walk in walks],
        [None] * len(walks),
        saved,
        geometries,
        [
            (*_image(grad), *_image(to_gates), _address(to_weight), _address(to_h0), _address(to_c0))
            for grad, (to_gates, to_weight, to_h0, to_c0) in zip(grad_hidden, grads, strict=True)
        ],
    )


def _run(
    direction: str,
    walks: Sequence[Sequence[Tensor | None]],
    hidden: Sequence[Tensor | None],
    saved: Tensor | None,
    geometries: Sequence[Geometry],
    *gradients: Any,
) -> None:
    """Calls the kernel with the addresses of (gates, weight, h0, c0), hidden and saved of each walk."""
    kept = []  # copies must live as long as the call
    natives = []
    for index, ((gates, *rest), own, geometry) in enumerate(zip(walks, hidden, geometries, strict=True)):
        gates = _readable(_present(gates))
        parameters = [None if value is None else value.contiguous() for value in rest]
        kept += [gates, *parameters]
        natives.append(
            (
                geometry.mirrored,
                *_image(gates),
                *map(_address, parameters),
                *_image(own),
                0 if saved is None else saved[index].data_ptr(),
            )
        )
    batch, channels, height, width = _present(walks[0][0]).shape
    done = getattr(backends.require_native(), f"wavefront_lstm_{direction}")(
        _STORAGE[_present(walks[0][0]).dtype],
        torch.get_num_threads(),
        (batch, channels // 4, height, width),
        geometries[0].front == "diagonal",
        list(geometries[0].taps),
        natives,
        *gradients,
    )
    if not done:
        raise MemoryError(f"wavefront_lstm: no memory for the scratch of the {direction} kernel")


def _present(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _readable(t: Tensor) -> Tensor:
    """t itself where the kernel can walk its strides (innermost W or C), else a copy."""
    return t if 1 in (t.stride(1), t.stride(3)) else t.contiguous()


def _address(t: Tensor | None) -> int:
    return 0 if t is None or t.numel() == 0 else t.data_ptr()


def _image(t: Tensor | None) -> tuple[int, tuple[int, ...]]:
    """Address and strides of [N, C, H, W], settled where a size of 1 leaves open what is innermost."""
    if t is None or t.numel() == 0:
        return 0, _NO_STRIDES
    n, c, h, w = t.stride()
    if t.shape[1] == 1:
        return t.data_ptr(), (n, max(h * t.shape[2], 2), h, w)
    return t.data_ptr(), (n, c, h, max(w, 2) if t.shape[3] == 1 and c == 1 else w)
