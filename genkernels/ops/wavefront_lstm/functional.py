"""The wavefront LSTM: the public functions, and the kernels of the operators by device."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.torch_internals import AUTOCAST_KEYS, DispatchKey, excluding
from ..core.verbose import is_on, like, log_choice
from . import cpu, gpu, reference, schema
from .arguments import check_gates, check_state, check_together
from .derivatives import geometries, walks, walks_of
from .geometry import Geometry

ROW_TAPS = (-1, 0, 1)  # above left, above, above right
DIAGONAL_TAPS = (0, -1)  # left, above


# --- the public functions --------------------------------------------------------------------------------------


def row_lstm(
    gates: Tensor,
    weight: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    taps: Sequence[int] = ROW_TAPS,
    checkpoint: bool = False,
) -> Tensor:
    """Row LSTM: walks an image from top to bottom, all pixels of a row at once.

    For every pixel p, with i, f, o after a sigmoid and g after a tanh::

        i, f, g, o = gates[p] + sum over taps t of weight[t] @ h[p one row up, taps[t] to the right]
        c[p] = f * c[p one row up] + i * g
        h[p] = o * tanh(c[p])

    Outside the image h and c are the initial state. Pixel (y, x) depends on itself and, with the usual taps, on a
    triangle above it. Differentiable any number of times; works under autocast, ``torch.compile`` and
    ``torch.func``. Double backward and forward mode run in plain PyTorch.

    Args:
        gates: [N, 4h, H, W] or [4h, H, W], the input-to-state part with its bias, in blocks i, f, g, o of h
            channels each (as ``nn.LSTM`` orders them); float64, float32, bfloat16 or float16 (16-bit types
            accumulate in float32). For an image model it must not see future pixels, as a masked convolution
            does not. Any strides.
        weight: [taps, 4h, h], the state-to-state part; the dtype and device of gates.
        h0, c0: [h], the state outside the image; None for zeros.
        taps: the columns that weight's first dimension stands for, relative to the pixel's own.
        checkpoint: keep the inputs alone for backward, and walk forward once more there. Saves the buffer of
            gate activations and cells, 20 h bytes a pixel (40 h in float64), which is more than all that is kept
            otherwise, for about half as much time again.

    Returns:
        h, [N, h, H, W] (or [h, H, W]), the dtype of gates; channels_last where gates is, else contiguous.

    Raises:
        ValueError: an argument does not fit; the message names it, what was expected and what came.
        TypeError: a dtype does not fit.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.1.
    """
    return _walk([(gates, weight, h0, c0)], [""], geometry_of("row", taps), checkpoint)[0]


def diagonal_lstm(
    gates: Tensor,
    weight: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    taps: Sequence[int] = DIAGONAL_TAPS,
    mirrored: bool = False,
    checkpoint: bool = False,
) -> Tensor:
    """One direction of the Diagonal LSTM: walks over anti-diagonals, from the top left corner to the bottom right.

    The same recurrence as :func:`row_lstm`, but tap t reads the pixel t rows down (up, being negative) and 1 + t
    columns to the left: 0 is the pixel to the left, -1 the pixel above, -2 the pixel two rows up and one to the
    right. c is carried on from the pixel to the left. These are the paper's taps over the column of a skewed
    image; no skewed image is made. Pixel (y, x) depends on itself and on all pixels above or to the left of both.

    Args:
        gates, weight, h0, c0, checkpoint: as for :func:`row_lstm`.
        taps: at most 0 each, since below lies the future.
        mirrored: exchange left and right: from the top right corner to the bottom left. Its result sees pixels to
            the right, so :func:`diagonal_bilstm` shifts it down one row.

    Returns, Raises: as :func:`row_lstm`.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.2.
    """
    return _walk([(gates, weight, h0, c0)], [""], geometry_of("diagonal", taps), checkpoint, [mirrored])[0]


def diagonal_bilstm(
    gates_left: Tensor,
    gates_right: Tensor,
    weight_left: Tensor,
    weight_right: Tensor,
    h0_left: Tensor | None = None,
    c0_left: Tensor | None = None,
    h0_right: Tensor | None = None,
    c0_right: Tensor | None = None,
    *,
    taps: Sequence[int] = DIAGONAL_TAPS,
    checkpoint: bool = False,
) -> Tensor:
    """Diagonal BiLSTM: a walk from the top left, a walk from the top right, and their sum, in one call.

    ``diagonal_lstm(left) + shift_down(diagonal_lstm(right, mirrored=True))``, where shift_down moves every row
    down by one and fills the top row with zeros. The walk from the right sees pixels to the right, which are the
    future in its own row and the past in the next: so shifted, a pixel sees itself, all pixels before it, and no
    other.

    Args:
        gates_left, gates_right: [N, 4h, H, W] or [4h, H, W] each, both of one shape; see :func:`row_lstm`.
        weight_left, weight_right: [taps, 4h, h] each.
        h0_left, c0_left, h0_right, c0_right: [h], the state outside the image; None for zeros.
        taps: as for :func:`diagonal_lstm`.
        checkpoint: as for :func:`row_lstm`.

    Returns:
        [N, h, H, W] (or [h, H, W]), the dtype of the gates.

    Raises: as :func:`row_lstm`.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.2.
    """
    inputs = [(gates_left, weight_left, h0_left, c0_left), (gates_right, weight_right, h0_right, c0_right)]
    left, right = _walk(inputs, ["_left", "_right"], geometry_of("diagonal", taps), checkpoint, [False, True])
    return left + F.pad(right[..., :-1, :], (0, 0, 1, 0)) if right.shape[-2] else left


def _walk(
    inputs: Sequence[tuple[Tensor, Tensor, Tensor | None, Tensor | None]],
    names: Sequence[str],
    geometry: Geometry,
    checkpoint: bool,
    mirrored: Sequence[bool] = (False,),
) -> tuple[Tensor, ...]:
    """h of each walk, once the arguments are checked; ``names`` end the arguments' names."""
    for (gates, *state), name in zip(inputs, names, strict=True):
        check_gates(gates, name)
        check_state(gates.shape[-3], state, name, len(geometry.taps))
    shape = inputs[0][0].shape
    if inputs[-1][0].shape != shape:
        raise ValueError(
            f"gates{names[-1]}: expected the shape of gates{names[0]}, {list(shape)}; got {list(inputs[-1][0].shape)}"
        )
    kinds = ("gates", "weight", "h0", "c0")
    together: dict[str, Tensor | None] = {}
    for walk, name in zip(inputs, names, strict=True):
        together.update(zip((f"{kind}{name}" for kind in kinds), walk, strict=True))
    check_together(together)
    flat: list[Tensor | None] = []
    for gates, *others in inputs:
        flat += [gates.unsqueeze(0) if len(shape) == 3 else gates, *others]
    keep = keeps(flat, checkpoint)
    if is_on() and not torch.compiler.is_compiling():
        options = {"mirrored": mirrored[0]} if geometry.front == "diagonal" and len(inputs) == 1 else {}
        say_walk("lstm", together, geometry, checkpoint, options)
    *hidden, _ = walks[len(inputs)].forward(*flat, geometry.front, list(geometry.taps), list(mirrored), keep)
    return tuple(h.squeeze(0) for h in hidden) if len(shape) == 3 else tuple(hidden)


def say_walk(
    kind: str, named: dict[str, Tensor | None], geometry: Geometry, checkpoint: bool, options: dict[str, Any]
) -> None:
    """Which implementation runs, of an operator of this kind ("lstm", "lstm_layer"); by name its tensors."""
    first = next(tensor for tensor in named.values() if tensor is not None)
    name = f"{geometry.front}_{'bi' * any(key.endswith('_right') for key in named)}{kind}"
    kernels = KERNELS.get(first.device.type.upper())
    reason = f"no kernel for {first.device.type}" if kernels is None else kernels.why_not(first, [geometry])
    kernel = f"the {first.device.type.upper()} kernel" if reason is None else "the reference in plain PyTorch"
    arguments = [f"{key}={like(tensor)}" for key, tensor in named.items()]
    options = {**options, "taps": geometry.taps, "checkpoint": checkpoint}
    arguments += [f"{key}={value!r}" for key, value in options.items()]
    line = f"genkernels.ops.{name}({', '.join(arguments)})"
    log_choice(name, kernel, reason or "it walks the image in one call", line)


def keeps(tensors: Sequence[Tensor | None], checkpoint: bool) -> bool:
    """Whether backward may come, and shall find what it needs.

    A traced program is the same with and without gradients; there backward walks forward once more.
    """
    if checkpoint or torch.jit.is_tracing():
        return False
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def geometry_of(front: str, taps: Sequence[int]) -> Geometry:
    try:
        return Geometry(front, tuple(taps))
    except TypeError:
        raise ValueError(f"taps: expected whole numbers; got {taps!r}") from None


# --- kernels ---------------------------------------------------------------------------------------------------


def _forward_reference(count: int, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, front, taps, mirrored, keep = arguments
    inputs = walks_of(tensors, count)
    hidden = []
    saved = schema.empty_saved([walk[0] for walk in inputs], keep)
    for index, (walk, geometry) in enumerate(zip(inputs, geometries(front, taps, mirrored), strict=True)):
        gates, weight, h0, c0 = walk
        h, trace = reference.forward(gates, weight, h0, c0, geometry)
        hidden.append(schema.empty_hidden(gates).copy_(h))
        if keep:
            saved[index] = trace.transpose(0, 1).flatten(1)
    return (*hidden, saved)


def _formula(count: int, *arguments: Any) -> tuple[Tensor, ...]:
    """The walks in operators that a tracer can follow, without what backward needs."""
    *tensors, front, taps, mirrored, _ = arguments
    inputs = walks_of(tensors, count)
    hidden = [
        reference.forward(*walk, geometry)[0]
        for walk, geometry in zip(inputs, geometries(front, taps, mirrored), strict=True)
    ]
    return (*hidden, schema.empty_saved([walk[0] for walk in inputs], keep=False))


def _backward_reference(count: int, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, saved, front, taps, mirrored, needs = arguments
    results: list[Tensor] = []
    for index, (walk, geometry) in enumerate(
        zip(walks_of(tensors, count), geometries(front, taps, mirrored), strict=True)
    ):
        grad_hidden, gates, weight, h0, c0 = walk
        if saved.dim() == 3:
            trace = saved[index].unflatten(1, (-1, weight.shape[2] * 5)).transpose(0, 1)
        else:
            _, trace = reference.forward(gates, weight, h0, c0, geometry)
        grads = reference.backward(grad_hidden, weight, h0, c0, trace, geometry)
        outputs = schema.empty_grads((gates, weight, h0, c0), needs[4 * index : 4 * index + 4])
        results += [out.copy_(grad) if out.numel() else out for out, grad in zip(outputs, grads, strict=True)]
    return tuple(results)


KERNELS: dict[str, ModuleType] = {"CPU": cpu, "CUDA": gpu}  # by dispatch key


def _forward_native(key: str, count: int, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, front, taps, mirrored, keep = arguments
    walked = geometries(front, taps, mirrored)
    if not _can_run(key, tensors[0], walked):
        return _forward_reference(count, *arguments)
    return KERNELS[key].forward(walks_of(tensors, count), walked, keep)


def _backward_native(key: str, count: int, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, saved, front, taps, mirrored, needs = arguments
    walked = geometries(front, taps, mirrored)
    if not _can_run(key, tensors[1], walked):
        return _backward_reference(count, *arguments)
    return KERNELS[key].backward(walks_of(tensors, count), saved, walked, needs)


def _can_run(key: str, gates: Tensor, walked: list[Geometry]) -> bool:
    """Whether the native kernels take the walk. Where a GPU is left to the slow way, a warning says why."""
    reason = KERNELS[key].why_not(gates, walked)
    if reason and key == "CUDA" and gates.dtype != torch.float64:
        warnings.warn(f"wavefront LSTM front by front in plain PyTorch: {reason}", RuntimeWarning, stacklevel=2)
    return reason is None


def _forward_fake(count: int, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, _, _, _, keep = arguments
    gates = [walk[0] for walk in walks_of(tensors, count)]
    return (*(schema.empty_hidden(one) for one in gates), schema.empty_saved(gates, keep))


def _backward_fake(count: int, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, _, _, _, _, needs = arguments
    results: list[Tensor] = []
    for walk, wanted in zip(walks_of(tensors, count), walks_of(needs, count), strict=True):
        results += schema.empty_grads(walk[1:], wanted)
    return tuple(results)


# --- autocast --------------------------------------------------------------------------------------------------


def cast(value: Any, dtype: torch.dtype) -> Any:
    """As autocast does it: float64 and what is no tensor stay."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value


def _register_autocast(count: int, device_type: str, key: DispatchKey) -> None:
    def forward_autocast(*arguments: Any) -> tuple[Tensor, ...]:
        dtype = torch.get_autocast_dtype(device_type)
        with excluding(key):
            return walks[count].forward(*(cast(value, dtype) for value in arguments))

    schema.library.impl(schema.NAMES[count], forward_autocast, key.name)


def _register(count: int) -> None:
    def bound(kernel: Any, *first: Any) -> Any:
        def call(*arguments: Any) -> tuple[Tensor, ...]:
            return kernel(*first, count, *arguments)

        return call

    name = schema.NAMES[count]
    walks[count].forward.use_kernel(bound(_forward_native, "CPU"))
    walks[count].backward.use_kernel(bound(_backward_native, "CPU"))
    walks[count].forward.use_formula(bound(_formula))
    schema.library.impl(name, bound(_forward_reference), "CompositeExplicitAutograd")
    schema.library.impl(f"{name}_backward", bound(_backward_reference), "CompositeExplicitAutograd")
    for key in KERNELS:
        schema.library.impl(name, bound(_forward_native, key), key)
        schema.library.impl(f"{name}_backward", bound(_backward_native, key), key)
    torch.library.register_fake(f"genkernels::{name}", bound(_forward_fake), lib=schema.library)
    torch.library.register_fake(f"genkernels::{name}_backward", bound(_backward_fake), lib=schema.library)
    _register_autocast(count, "cpu", AUTOCAST_KEYS["cpu"])
    _register_autocast(count, "cuda", AUTOCAST_KEYS["cuda"])


for _count in schema.NAMES:
    _register(_count)
