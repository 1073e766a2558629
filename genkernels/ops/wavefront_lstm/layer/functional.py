"""Recurrent layers, convolution to the gates and walk in one: the public functions, and the kernels by device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.torch_internals import AUTOCAST_KEYS, DispatchKey, excluding
from ...core.verbose import is_on
from ...masked_conv.functional import check_options, check_tensors
from .. import cpu_layer as cpu
from .. import reference
from ..arguments import check_state, check_together
from ..functional import DIAGONAL_TAPS, ROW_TAPS, cast, geometry_of, keeps, say_walk
from ..geometry import Geometry
from . import schema
from .derivatives import layers, moved_up

_Parameters = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]


# --- the public functions --------------------------------------------------------------------------------------


def row_lstm_layer(
    x: Tensor,
    input_weight: Tensor,
    input_bias: Tensor | None,
    weight: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    mask_type: str = "B",
    taps: Sequence[int] = ROW_TAPS,
    checkpoint: bool = False,
) -> Tensor:
    """A whole Row LSTM layer: ``row_lstm(masked_conv2d(x, input_weight, input_bias), weight, h0, c0)``, in less memory.

    The gates, the largest tensor of a layer, exist for a few images at a time only, and so does their gradient.
    Differentiable any number of times; works under autocast, ``torch.compile`` and ``torch.func``. Double backward
    and forward mode run in plain PyTorch.

    Args:
        x: [N, C, H, W] or [C, H, W]; float64, float32, bfloat16 or float16 (16-bit types compute in float32).
        input_weight: [4h, C, kh, kw], kh and kw odd, gates in blocks i, f, g, o; the dtype and device of x, as all
            others.
        input_bias: [4h] or None.
        weight, h0, c0, taps: the state-to-state part, as for :func:`row_lstm`.
        mask_type: of the convolution: "A" hides the pixel itself, "B" shows it.
        checkpoint: keep the inputs alone for backward, and compute forward once more there. Otherwise backward finds
            the gates' activations and the cells, 20 h bytes a pixel (40 h in float64).

    Returns:
        h, [N, h, H, W] (or [h, H, W]), the dtype of x; channels_last where :func:`masked_conv2d` gives that.

    Raises:
        ValueError: an argument does not fit; the message names it, what was expected and what came.
        TypeError: a dtype does not fit.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.1.
    """
    return _layer(
        x, [(input_weight, input_bias, weight, h0, c0)], [""], mask_type, geometry_of("row", taps), checkpoint
    )


def diagonal_lstm_layer(
    x: Tensor,
    input_weight: Tensor,
    input_bias: Tensor | None,
    weight: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    mask_type: str = "B",
    taps: Sequence[int] = DIAGONAL_TAPS,
    checkpoint: bool = False,
) -> Tensor:
    """One direction of a Diagonal LSTM layer: as :func:`row_lstm_layer`, with the walk of :func:`diagonal_lstm`.

    Args, Returns, Raises: as for :func:`row_lstm_layer`; taps as for :func:`diagonal_lstm`.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.2.
    """
    geometry = geometry_of("diagonal", taps)
    return _layer(x, [(input_weight, input_bias, weight, h0, c0)], [""], mask_type, geometry, checkpoint)


def diagonal_bilstm_layer(
    x: Tensor,
    input_weight_left: Tensor,
    input_weight_right: Tensor,
    input_bias_left: Tensor | None,
    input_bias_right: Tensor | None,
    weight_left: Tensor,
    weight_right: Tensor,
    h0_left: Tensor | None = None,
    c0_left: Tensor | None = None,
    h0_right: Tensor | None = None,
    c0_right: Tensor | None = None,
    *,
    mask_type: str = "B",
    taps: Sequence[int] = DIAGONAL_TAPS,
    checkpoint: bool = False,
) -> Tensor:
    """A whole Diagonal BiLSTM layer: :func:`diagonal_bilstm` of a masked convolution of x for each direction.

    Args, Returns, Raises: as for :func:`row_lstm_layer`, taps as for :func:`diagonal_lstm`; ``_left`` is the walk
    from the top left corner, ``_right`` the one from the top right, whose result is moved a row down.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.2.
    """
    left = (input_weight_left, input_bias_left, weight_left, h0_left, c0_left)
    right = (input_weight_right, input_bias_right, weight_right, h0_right, c0_right)
    geometry = geometry_of("diagonal", taps)
    return _layer(x, [left, right], ["_left", "_right"], mask_type, geometry, checkpoint)


def _layer(
    x: Tensor, parameters: Sequence[_Parameters], names: Sequence[str], mask_type: str, geometry: Geometry,
    checkpoint: bool,
) -> Tensor:  # fmt: skip
    """The result, once the arguments are checked; ``names`` end the parameters' names."""
    check_options(mask_type, 1, "blocks", None)
    together: dict[str, Tensor | None] = {"x": x}
    for (input_weight, input_bias, *state), name in zip(parameters, names, strict=True):
        check_tensors(x, input_weight, input_bias, 1, "input_", name)
        channels = input_weight.shape[0]
        if channels == 0 or channels % 4:
            raise ValueError(
                f"input_weight{name}: expected [4h, C, kh, kw], four gates of h; got shape {list(input_weight.shape)}"
            )
        check_state(channels, state, name, len(geometry.taps))
        together.update(zip((f"{kind}{name}" for kind in ("weight", "h0", "c0")), state, strict=True))
    check_together(together)
    first, last = list(parameters[0][0].shape), list(parameters[-1][0].shape)
    if last != first:
        raise ValueError(f"input_weight{names[-1]}: expected the shape of input_weight{names[0]}, {first}; got {last}")
    tensors = [x.unsqueeze(0) if x.dim() == 3 else x, *(t for walk in parameters for t in walk)]
    keep = keeps(tensors, checkpoint)
    if is_on() and not torch.compiler.is_compiling():
        kinds = ("input_weight", "input_bias", "weight", "h0", "c0")
        named: dict[str, Tensor | None] = {"x": x}
        for walk, name in zip(parameters, names, strict=True):
            named.update(zip((f"{kind}{name}" for kind in kinds), walk, strict=True))
        say_walk("lstm_layer", named, geometry, checkpoint, {"mask_type": mask_type})
    hidden, _ = layers[len(parameters)].forward(*tensors, mask_type, geometry.front, list(geometry.taps), keep)
    return hidden.squeeze(0) if x.dim() == 3 else hidden


# --- kernels ---------------------------------------------------------------------------------------------------
# Where there is no kernel of the layer's own, it is its convolution and its walk, by whatever kernels these have.

_ops = torch.ops.genkernels
_CONVOLUTION = (1, "blocks", [1, 1], "none")  # no colour groups, no dilation, no activation


def _gates(tensors: Sequence[Any], mask_type: str) -> list[Tensor]:
    x, *parameters = tensors
    return [_ops.masked_conv2d(x, *walk[:2], mask_type, *_CONVOLUTION) for walk in schema.by_walk(parameters)]


def _forward_composed(count: int, *arguments: Any) -> tuple[Tensor, Tensor]:
    *tensors, mask_type, front, taps, keep = arguments
    walk = _ops.wavefront_lstm if count == 1 else _ops.wavefront_lstm_pair
    inputs: list[Tensor] = []
    with torch.autocast(tensors[0].device.type, enabled=False):
        for gates, (_, _, *state) in zip(_gates(tensors, mask_type), schema.by_walk(tensors[1:]), strict=True):
            inputs += [gates, *state]
        hidden, *others, saved = walk(*inputs, front, taps, [False, True][:count], keep)
    for right in others:
        hidden[:, :, 1:] += right[:, :, :-1]
    return hidden, saved


def _formula(count: int, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The layer in operators that a tracer can follow, without what backward needs."""
    *tensors, mask_type, front, taps, _ = arguments
    x, *parameters = tensors
    hidden = [
        reference.forward(gates, *state, geometry)[0]
        for gates, (_, _, *state), geometry in zip(
            _gates(tensors, mask_type), schema.by_walk(parameters), schema.geometries(count, front, taps), strict=True
        )
    ]
    for right in hidden[1:]:
        hidden[0] = hidden[0] + F.pad(right[:, :, :-1], (0, 0, 1, 0))
    return hidden[0], schema.empty_saved(x, parameters[0], count, keep=False)


def _backward_composed(count: int, *arguments: Any) -> tuple[Tensor, ...]:
    grad_hidden, *tensors, saved, mask_type, front, taps, needs = arguments
    x, *parameters = tensors
    walk = _ops.wavefront_lstm_backward if count == 1 else _ops.wavefront_lstm_pair_backward
    needs_x, needed = needs[0], schema.by_walk(needs[1:])
    inputs: list[Tensor] = []
    results: list[Tensor] = []
    grad_x: Any = None
    with torch.autocast(x.device.type, enabled=False):
        for index, (gates, (_, _, *state)) in enumerate(
            zip(_gates(tensors, mask_type), schema.by_walk(parameters), strict=True)
        ):
            inputs += [moved_up(grad_hidden) if index else grad_hidden, gates, *state]
        wanted = [flag for own in needed for flag in (needs_x or own[0] or own[1], *own[2:])]
        grads = walk(*inputs, saved, front, taps, [False, True][:count], wanted)
        for index, (own, (weight, *_)) in enumerate(zip(needed, schema.by_walk(parameters), strict=True)):
            to_gates, *to_state = grads[4 * index : 4 * index + 4]
            to_x, *to_input = [x.new_empty(0)] * 3
            if needs_x or own[0] or own[1]:
                to_x, *to_input = _ops.masked_conv2d_backward(
                    to_gates, x, weight, None, mask_type, *_CONVOLUTION, [needs_x, *own[:2]]
                )
            grad_x = to_x if grad_x is None else grad_x + to_x
            results += [*to_input, *to_state]
    outputs = schema.empty_grads(tensors, needs)
    return tuple(out.copy_(grad) if out.numel() else out for out, grad in zip(outputs, [grad_x, *results], strict=True))


def _forward_cpu(count: int, *arguments: Any) -> tuple[Tensor, Tensor]:
    if cpu.why_not(arguments[0]) is not None:
        return _forward_composed(count, *arguments)
    *tensors, mask_type, front, taps, keep = arguments
    return cpu.forward(tensors, mask_type, schema.geometries(count, front, taps), keep)


def _backward_cpu(count: int, *arguments: Any) -> tuple[Tensor, ...]:
    if cpu.why_not(arguments[0]) is not None:
        return _backward_composed(count, *arguments)
    grad_hidden, *tensors, saved, mask_type, front, taps, needs = arguments
    return cpu.backward(grad_hidden, tensors, saved, mask_type, schema.geometries(count, front, taps), needs)


def _forward_fake(count: int, *arguments: Any) -> tuple[Tensor, Tensor]:
    x, input_weight, *_, keep = arguments
    return schema.empty_hidden(x, input_weight), schema.empty_saved(x, input_weight, count, keep)


def _backward_fake(count: int, *arguments: Any) -> tuple[Tensor, ...]:
    _, *tensors, _, _, _, _, needs = arguments
    return tuple(schema.empty_grads(tensors, needs))


# --- registration ----------------------------------------------------------------------------------------------


def _register(count: int) -> None:
    def bound(kernel: Any) -> Any:
        def call(*arguments: Any) -> tuple[Tensor, ...]:
            return kernel(count, *arguments)

        return call

    name = schema.NAMES[count]
    layers[count].forward.use_kernel(bound(_forward_cpu))
    layers[count].forward.use_formula(bound(_formula))
    layers[count].backward.use_kernel(bound(_backward_cpu))
    for key, forward, backward in (
        ("CompositeExplicitAutograd", _forward_composed, _backward_composed),
        ("CPU", _forward_cpu, _backward_cpu),
    ):
        schema.library.impl(name, bound(forward), key)
        schema.library.impl(f"{name}_backward", bound(backward), key)
    torch.library.register_fake(f"genkernels::{name}", bound(_forward_fake), lib=schema.library)
    torch.library.register_fake(f"genkernels::{name}_backward", bound(_backward_fake), lib=schema.library)
    _register_autocast(count, "cpu", AUTOCAST_KEYS["cpu"])
    _register_autocast(count, "cuda", AUTOCAST_KEYS["cuda"])


def _register_autocast(count: int, device_type: str, key: DispatchKey) -> None:
    def forward_autocast(*arguments: Any) -> tuple[Tensor, Tensor]:
        dtype = torch.get_autocast_dtype(device_type)
        with excluding(key):
            return layers[count].forward(*(cast(value, dtype) for value in arguments))

    schema.library.impl(schema.NAMES[count], forward_autocast, key.name)


for _count in schema.NAMES:
    _register(_count)
