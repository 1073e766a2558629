"""The native CPU kernels of the wavefront LSTM: layout and allocation around ``_C.wavefront_lstm_*``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ... import backends
from ..core.device_choice import why_no_cpu_kernel
from ..core.dtypes import STORAGE
from ..core.strides import readable, strides_of, weight_strides
from ..masked_conv.mask import MaskSpec
from .geometry import Geometry
from .schema import BackwardCall, Direction, Inputs

_NO_IMAGE = (0, (0, 0, 0, 0))
_NO_WEIGHT = (0, (0, 0, 0))


def why_not(gates: Tensor, geometries: Sequence[Geometry]) -> str | None:
    """The reason why the native kernel cannot take gates, or None where it can."""
    return why_no_cpu_kernel(gates)


def forward(inputs: Inputs, keep: bool) -> tuple[Tensor, ...]:
    """Hidden of each direction, and what backward needs where ``keep``."""
    hidden, saved = inputs.empty_hidden(), inputs.empty_saved(keep)
    if hidden[0].numel() > 0:
        forward_into(hidden, saved if keep else None, inputs)
    return (*hidden, saved)


def forward_into(hidden: Sequence[Tensor], saved: Tensor | None, inputs: Inputs) -> None:
    """h written to ``hidden`` of each direction, and what backward needs to ``saved``, if there.

    ``inputs`` may be those of a layer: then the kernel convolves x to the gates in the product of every step.
    """
    native = backends.require_native()
    kept: list[Tensor | None] = []
    directions = _directions(native, inputs, hidden, saved, kept)
    done = native.wavefront_lstm_forward(**_sizes(inputs), directions=directions)
    if not done:
        raise MemoryError("wavefront_lstm: no memory for the scratch of the forward kernel")


def backward(call: BackwardCall) -> None:
    """Writes the gradients of a recurrence. The kernel recovers h, in float32, from ``saved`` or from the gates."""
    if call.inputs.image.numel() == 0:
        for grad in call.grads.in_a_row:
            grad.zero_()
        return
    saved = call.saved if call.saved.numel() else None
    backward_into(call.grads.directions, call.grad_hidden, saved, call.inputs)


def backward_into(
    grads: Sequence[Direction], grad_hidden: Sequence[Tensor], saved: Tensor | None, inputs: Inputs
) -> None:
    """The gradients of gates, weight, h0 and c0 written to ``grads`` of each direction; None or [0] is not wanted.

    Without ``saved`` the gates are read, or convolved once more; their gradient may take their place.
    """
    native = backends.require_native()
    kept: list[Tensor | None] = []
    directions = _directions(native, inputs, [None] * len(grads), saved, kept)
    readable_grads = [readable(grad) for grad in grad_hidden]
    gradients = [
        native.WavefrontGradients(
            grad_hidden=_image(grad),
            grad_gates=_image(own.gates),
            grad_weight=_address(own.weight),
            grad_h0=_address(own.h0),
            grad_c0=_address(own.c0),
        )
        for grad, own in zip(readable_grads, grads, strict=True)
    ]
    done = native.wavefront_lstm_backward(**_sizes(inputs), directions=directions, gradients=gradients)
    if not done:
        raise MemoryError("wavefront_lstm: no memory for the scratch of the backward kernel")


def _sizes(inputs: Inputs) -> dict[str, Any]:
    """What is the same for all directions."""
    image, geometry, convolution = inputs.image, inputs.geometries[0], None
    batch, _, height, width = image.shape
    if inputs.x is not None:
        assert inputs.mask_type is not None
        _, channels, *kernel = inputs.directions[0].input_weight.shape
        convolution = _convolution(channels, (kernel[0], kernel[1]), inputs.mask_type)
    return {
        "storage": STORAGE[image.dtype],
        "threads": torch.get_num_threads(),
        "sizes": (batch, inputs.hidden_channels, height, width),
        "diagonal": geometry.front == "diagonal",
        "taps": geometry.taps,
        "convolution": convolution,
    }


@lru_cache(maxsize=64)
def _convolution(channels: int, kernel: tuple[int, int], mask_type: str) -> Any:
    """The convolution of a layer. There are no colour groups: in raster order the live taps come first."""
    spec = MaskSpec(1, 1, kernel, mask_type, 1, "blocks")
    live_taps = len(spec.full_taps()) + (mask_type == "B")
    return backends.require_native().WavefrontConvolution(channels=channels, kernel=kernel, live_taps=live_taps)


def _directions(
    native: Any,
    inputs: Inputs,
    hidden: Sequence[Tensor | None],
    saved: Tensor | None,
    kept: list[Tensor | None],
) -> list[Any]:
    """The tensors of each direction as the kernels take them; copies go to ``kept``, to live as long as the call."""
    x = None if inputs.x is None else readable(inputs.x)
    x_image = _image(x)
    kept.append(x)
    directions = []
    for index, (own, geometry, to) in enumerate(zip(inputs.directions, inputs.geometries, hidden, strict=True)):
        gates = None if own.gates is None else readable(own.gates)
        input_weight = own.input_weight
        if input_weight is not None and weight_strides(input_weight) is None:
            input_weight = input_weight.contiguous()
        vectors = [None if value is None else value.contiguous() for value in (own.input_bias, own.h0, own.c0)]
        kept += [gates, input_weight, *vectors]
        input_bias, h0, c0 = map(_address, vectors)
        directions.append(
            native.WavefrontDirection(
                mirrored=geometry.mirrored,
                gates=_image(gates),
                x=x_image,
                weight=_state_weight(own.weight),
                input_weight=_NO_WEIGHT if input_weight is None else _input_weight(input_weight),
                input_bias=input_bias,
                h0=h0,
                c0=c0,
                hidden=_image(to),
                saved=0 if saved is None else saved[index].data_ptr(),
            )
        )
    return directions


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
