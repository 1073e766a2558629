"""The native CPU kernels of the wavefront LSTM: layout and allocation around ``_C.wavefront_lstm_*``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import backends
from ..core.device_choice import why_no_cpu_kernel
from ..core.dtypes import STORAGE
from ..core.strides import readable, strides_of, weight_strides
from ..masked_conv.mask import MaskSpec
from .geometry import Geometry
from .schema import empty_grads, empty_hidden, empty_saved

_NO_IMAGE = (0, (0, 0, 0, 0))
_NO_WEIGHT = (0, (0, 0, 0))


@dataclass(frozen=True)
class Convolution:
    """A masked convolution of x that a walk computes its gates with, in the product of every front.

    Attributes:
        x: [N, C, H, W].
        spec: the mask, without colour groups; no dilation.
        parameters: (weight [4h, C, kh, kw], bias [4h] or None) of each walk.
    """

    x: Tensor
    spec: MaskSpec
    parameters: Sequence[tuple[Tensor, Tensor | None]]

    def options(self) -> tuple[int, int, int, int]:
        """(C, kh, kw, live taps: in raster order they come first)."""
        live = len(self.spec.full_taps()) + (self.spec.mask_type == "B")
        return (self.spec.in_channels, *self.spec.kernel, live)


def why_not(gates: Tensor, geometries: Sequence[Geometry]) -> str | None:
    """The reason why the native kernel cannot take gates, or None where it can."""
    return why_no_cpu_kernel(gates)


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
    convolution: Convolution | None = None,
) -> None:
    """h written to ``hidden`` of each walk, and what backward needs to ``saved`` [walks, N, H * W * 5h] if there.

    With a ``convolution`` the gates of the walks are None.
    """
    _run("forward", walks, hidden, saved, geometries, convolution)


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
    convolution: Convolution | None = None,
) -> None:
    """The gradients of (gates, weight, h0, c0) written to ``grads`` of each walk; None or [0] is not wanted.

    Without ``saved`` the gates are read, or convolved once more; their gradient may take their place.
    """
    grad_hidden = [readable(_present(walk[0])) for walk in walks]
    _run(
        "backward",
        [walk[1:] for walk in walks],
        [None] * len(walks),
        saved,
        geometries,
        convolution,
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
    convolution: Convolution | None,
    *gradients: Any,
) -> None:
    """Calls the kernel with the addresses of (gates, weight, h0, c0), hidden and saved of each walk."""
    x = None if convolution is None else readable(convolution.x)
    inputs = [(None, None)] * len(walks) if convolution is None else convolution.parameters
    kept: list[Any] = [x]  # copies must live as long as the call
    natives = []
    for index, ((gates, weight, *state), (input_weight, bias), own, geometry) in enumerate(
        zip(walks, inputs, hidden, geometries, strict=True)
    ):
        if gates is not None:
            gates = readable(gates)
        if input_weight is not None and weight_strides(input_weight) is None:
            input_weight = input_weight.contiguous()
        vectors = [None if value is None else value.contiguous() for value in (bias, *state)]
        kept += [gates, input_weight, *vectors]
        natives.append(
            (
                geometry.mirrored,
                _image(gates),
                _image(x),
                _state_weight(_present(weight)),
                _NO_WEIGHT if input_weight is None else _input_weight(input_weight),
                tuple(map(_address, vectors)),
                _image(own),
                0 if saved is None else saved[index].data_ptr(),
            )
        )
    shaped = _present(x if walks[0][0] is None else walks[0][0])
    batch, _, height, width = shaped.shape
    done = getattr(backends.require_native(), f"wavefront_lstm_{direction}")(
        STORAGE[shaped.dtype],
        torch.get_num_threads(),
        (batch, _present(walks[0][1]).shape[2], height, width),
        geometries[0].front == "diagonal",
        list(geometries[0].taps),
        (0, 0, 0, 0) if convolution is None else convolution.options(),
        natives,
        *gradients,
    )
    if not done:
        raise MemoryError(f"wavefront_lstm: no memory for the scratch of the {direction} kernel")


def _present(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _address(t: Tensor | None) -> int:
    return 0 if t is None or t.numel() == 0 else t.data_ptr()


def _state_weight(weight: Tensor) -> tuple[int, tuple[int, ...]]:
    """Address and strides (out, in, tap) of [taps, 4h, h]."""
    tap, out, inner = strides_of(weight)
    return weight.data_ptr(), (out, inner, tap)


def _input_weight(weight: Tensor) -> tuple[int, tuple[int, ...]]:
    """Address and strides (out, in, tap) of [4h, C, kh, kw] whose taps are evenly spaced."""
    strides = weight_strides(weight)
    assert strides is not None
    return weight.data_ptr(), strides


def _image(t: Tensor | None) -> tuple[int, tuple[int, ...]]:
    """Address and strides of [N, C, H, W]."""
    if t is None or t.numel() == 0:
        return _NO_IMAGE
    return t.data_ptr(), strides_of(t)
