"""The public functions of the wavefront LSTM: recurrences over given gates, and layers with their convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.verbose import is_on, like, log_choice
from ..masked_conv.functional import check_options
from . import dispatch
from .arguments import Tensors, check_layer, check_recurrence
from .derivatives import DifferentiableLstm, layers, recurrences
from .geometry import Geometry

ROW_TAPS = (-1, 0, 1)  # above left, above, above right
DIAGONAL_TAPS = (0, -1)  # left, above


# --- recurrences -----------------------------------------------------------------------------------------------


def row_lstm(
    gates: Tensor,
    weight: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    taps: Sequence[int] = ROW_TAPS,
    checkpoint: bool = False,
) -> Tensor:
    """Row LSTM: sweeps an image from top to bottom, all pixels of a row at once.

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
        checkpoint: keep the inputs alone for backward, and compute forward once more there. Saves the buffer of
            gate activations and cells, 20 h bytes a pixel (40 h in float64), which is more than all that is kept
            otherwise, for about half as much time again.

    Returns:
        h, [N, h, H, W] (or [h, H, W]), the dtype of gates; channels_last where gates is, else contiguous.

    Raises:
        ValueError: an argument does not fit; the message names it, what was expected and what came.
        TypeError: a dtype does not fit.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.1.
    """
    tensors = {"gates": gates, "weight": weight, "h0": h0, "c0": c0}
    return _recurrence(tensors, _geometry_of("row", taps), [False], checkpoint)[0]


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
    """One direction of the Diagonal LSTM: sweeps over anti-diagonals, from the top left corner to the bottom right.

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
    tensors = {"gates": gates, "weight": weight, "h0": h0, "c0": c0}
    return _recurrence(tensors, _geometry_of("diagonal", taps), [mirrored], checkpoint)[0]


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
    """Diagonal BiLSTM: a sweep from the top left, a sweep from the top right, and their sum, in one call.

    ``diagonal_lstm(left) + shift_down(diagonal_lstm(right, mirrored=True))``, where shift_down moves every row
    down by one and fills the top row with zeros. The sweep from the right sees pixels to the right, which are the
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
    tensors = {
        "gates_left": gates_left, "weight_left": weight_left, "h0_left": h0_left, "c0_left": c0_left,
        "gates_right": gates_right, "weight_right": weight_right, "h0_right": h0_right, "c0_right": c0_right,
    }  # fmt: skip
    left, right = _recurrence(tensors, _geometry_of("diagonal", taps), [False, True], checkpoint)
    return left + F.pad(right[..., :-1, :], (0, 0, 1, 0)) if right.shape[-2] else left


# --- layers ----------------------------------------------------------------------------------------------------


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
    tensors = {
        "x": x, "input_weight": input_weight, "input_bias": input_bias, "weight": weight, "h0": h0, "c0": c0,
    }  # fmt: skip
    return _layer(tensors, _geometry_of("row", taps), mask_type, checkpoint)


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
    """One direction of a Diagonal LSTM layer: as :func:`row_lstm_layer`, with the sweep of :func:`diagonal_lstm`.

    Args, Returns, Raises: as for :func:`row_lstm_layer`; taps as for :func:`diagonal_lstm`.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.2.
    """
    tensors = {
        "x": x, "input_weight": input_weight, "input_bias": input_bias, "weight": weight, "h0": h0, "c0": c0,
    }  # fmt: skip
    return _layer(tensors, _geometry_of("diagonal", taps), mask_type, checkpoint)


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

    Args, Returns, Raises: as for :func:`row_lstm_layer`, taps as for :func:`diagonal_lstm`; ``_left`` is the sweep
    from the top left corner, ``_right`` the one from the top right, whose result is moved a row down.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.2.
    """
    tensors = {
        "x": x, "input_weight_left": input_weight_left, "input_bias_left": input_bias_left,
        "weight_left": weight_left, "h0_left": h0_left, "c0_left": c0_left,
        "input_weight_right": input_weight_right, "input_bias_right": input_bias_right,
        "weight_right": weight_right, "h0_right": h0_right, "c0_right": c0_right,
    }  # fmt: skip
    return _layer(tensors, _geometry_of("diagonal", taps), mask_type, checkpoint)


# --- from checked arguments to the operators -------------------------------------------------------------------


def _recurrence(tensors: Tensors, geometry: Geometry, mirrored: list[bool], checkpoint: bool) -> Sequence[Tensor]:
    """h of each direction."""
    names = ["gates"] if len(mirrored) == 1 else ["gates_left", "gates_right"]
    check_recurrence(tensors, names, len(geometry.taps))
    if is_on() and not torch.compiler.is_compiling():
        said = {"mirrored": mirrored[0]} if geometry.front == "diagonal" and len(mirrored) == 1 else {}
        _log_choice(f"{'bi' * (len(mirrored) == 2)}lstm", tensors, geometry, checkpoint, said)
    options = (geometry.front, list(geometry.taps), mirrored)
    return _call(recurrences[len(mirrored)], tensors, names, options, checkpoint)


def _layer(tensors: Tensors, geometry: Geometry, mask_type: str, checkpoint: bool) -> Tensor:
    check_options(mask_type, 1, "blocks", None)
    ends = ["_left", "_right"] if "weight_left" in tensors else [""]
    check_layer(tensors, ends, len(geometry.taps))
    if is_on() and not torch.compiler.is_compiling():
        said = {"mask_type": mask_type}
        _log_choice(f"{'bi' * (len(ends) == 2)}lstm_layer", tensors, geometry, checkpoint, said)
    options = (mask_type, geometry.front, list(geometry.taps))
    return _call(layers[len(ends)], tensors, ["x"], options, checkpoint)[0]


def _call(
    lstm: DifferentiableLstm, tensors: Tensors, images: Sequence[str], options: Sequence[Any], checkpoint: bool
) -> Sequence[Tensor]:
    """The results; ``images`` names the tensors that may lack the batch dimension."""
    is_batch = tensors[images[0]].dim() == 4
    values = [t if is_batch or name not in images else t.unsqueeze(0) for name, t in tensors.items()]
    *hidden, _ = lstm.forward(*values, *options, _must_keep(values, checkpoint))
    return hidden if is_batch else [h.squeeze(0) for h in hidden]


def _must_keep(tensors: Sequence[Tensor | None], checkpoint: bool) -> bool:
    """Whether backward may come, and shall find what it needs.

    A traced program is the same with and without gradients; there backward computes forward once more.
    """
    if checkpoint or torch.jit.is_tracing():
        return False
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _geometry_of(front: str, taps: Sequence[int]) -> Geometry:
    try:
        return Geometry(front, tuple(taps))
    except TypeError:
        raise ValueError(f"taps: expected whole numbers; got {taps!r}") from None


def _log_choice(kind: str, tensors: Tensors, geometry: Geometry, checkpoint: bool, options: Mapping[str, Any]) -> None:
    """Say which implementation runs; ``kind`` ends the function's name."""
    first = next(tensor for tensor in tensors.values() if tensor is not None)
    device, name = first.device.type, f"{geometry.front}_{kind}"
    kernels = dispatch.KERNELS.get(device.upper())
    reason = f"no kernel for {device}" if kernels is None else kernels.why_not(first, [geometry])
    kernel = f"the {device.upper()} kernel" if reason is None else "the reference in plain PyTorch"
    arguments = [f"{key}={like(tensor)}" for key, tensor in tensors.items()]
    arguments += [f"{key}={value!r}" for key, value in options.items()]
    arguments += [f"taps={geometry.taps!r}", f"checkpoint={checkpoint!r}"]
    log_choice(
        name, kernel, reason or "it sweeps the image in one call", f"genkernels.ops.{name}({', '.join(arguments)})"
    )
