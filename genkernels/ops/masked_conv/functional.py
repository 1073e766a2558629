"""The masked convolution and its gated form: the public functions and their checks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.autocast import autocast_is_on
from ..core.differentiable_op import may_need_derivative
from ..core.prepared_call import key_of
from ..core.verbose import is_on
from . import dispatch
from .derivatives import forward, gated
from .mask import GROUP_LAYOUTS, MASK_TYPES, live_weight
from .reference import gate
from .schema import GatedOptions, Options


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_type: str,
    channel_groups: int = 1,
    group_layout: str = "blocks",
    dilation: int | Sequence[int] = 1,
    activation: str | None = None,
) -> Tensor:
    """Masked 2-D convolution that keeps H x W: a pixel sees the pixels above it and to its left, and no others.

    ``y[n, o, i, j] = act(bias[o] + sum over live taps (r, s) and channels c of
    weight[o, c, r, s] * x[n, c, i + (r - kh // 2) * dilation[0], j + (s - kw // 2) * dilation[1]])``,
    x taken as zero outside the image. Masked taps are skipped: they cost nothing, are never read and get a gradient
    of exactly zero. Differentiable any number of times; works under autocast, ``torch.compile`` and ``torch.func``.

    Args:
        x: [N, C, H, W] or [C, H, W]; float64, float32, bfloat16 or float16 (16-bit types accumulate in float32).
            Any strides; a tensor neither contiguous along W nor along C is copied once, and on a GPU one of 16 channels
            or more that is not contiguous along C. float32 is multiplied there as PyTorch's own convolutions do it,
            in TF32 where ``torch.backends.cudnn`` allows it.
        weight: [O, C, kh, kw], kh and kw odd; the dtype and device of x.
        bias: [O] or None.
        mask_type: "A" hides the centre tap (the pixel itself), "B" shows it.
        channel_groups: number of colour groups G, at most min(C, O). At the centre tap, group g of the output sees
            the input groups < g ("A") or <= g ("B"). 1 for no groups.
        group_layout: "blocks", where channel c of n is in group ``c * G // n``, or "interleaved", ``c % G``.
        dilation: one number or (vertical, horizontal), at least 1.
        activation: None or "relu".

    Returns:
        [N, O, H, W] (or [O, H, W]), the dtype of x; channels_last where x is (or, where x fits both layouts,
        where weight is), else contiguous.

    Raises:
        ValueError: an argument does not fit; the message names it, what was expected and what came.
        TypeError: a dtype does not fit.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural Networks", section 3.4.
    """
    key = None
    if type(dilation) in (int, tuple):  # a list has no hash
        key = key_of(x, weight, bias, (mask_type, channel_groups, group_layout, dilation, activation))
        call = forward.kept.get(key)
        if call is not None and not is_on():
            return forward.run(call, x, weight, bias)
    check_options(mask_type, channel_groups, group_layout, activation)
    spread = check_dilation(dilation)
    check_tensors(x, weight, bias, channel_groups)
    options = Options(mask_type, channel_groups, group_layout, spread, activation or "none")
    if key is not None:
        dispatch.keep_prepared(key, x, weight, bias, options)
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    y = forward(batched, weight, bias, *options)
    if is_on() and not torch.compiler.is_compiling():
        dispatch.log_call(x, weight, bias, options)
    return y if x.dim() == 4 else y.squeeze(0)


def masked_conv2d_gated(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    *,
    mask_type: str,
    channel_groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Gated masked convolution: ``tanh(a) * sigmoid(b)``, a and b the halves of ``masked_conv2d(...) + addend``.

    ``a[n, u] = bias[u] + addend[n, u] + sum over live taps of weight[u] * x[n]``, and ``b[n, u]`` the same of channel
    u + h; see :func:`masked_conv2d` for the taps. Differentiable any number of times; works under autocast,
    ``torch.compile`` and ``torch.func``. On a GPU the gate is part of the convolution's one pass.

    Args:
        x: [N, C, H, W] or [C, H, W]; dtypes and strides as for :func:`masked_conv2d`.
        weight: [2h, C, kh, kw], kh and kw odd; the dtype and device of x.
        bias: [2h] or None.
        addend: what another stack or a condition adds before the gate, or None; broadcasts to [N, 2h, H, W]
            (or [2h, H, W]); the dtype and device of x.
        mask_type: "A" hides the centre tap (the pixel itself), "B" shows it.
        channel_groups: number of colour groups G, at most min(C, h), in blocks: both channels of unit u are in group
            ``u * G // h``, whether or not G divides h.
        dilation: one number or (vertical, horizontal), at least 1.

    Returns:
        [N, h, H, W] (or [h, H, W]), the dtype of x; the layout is that of :func:`masked_conv2d`.

    Raises:
        ValueError: an argument does not fit; the message names it, what was expected and what came.
        TypeError: a dtype does not fit.

    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", equation 2.
    """
    check_options(mask_type, channel_groups, "blocks", None)
    spread = check_dilation(dilation)
    check_tensors(x, weight, bias, 1)
    _check_gate(x, weight, addend, channel_groups)
    if not dispatch.gate_is_fused(x):
        live, mask_type = live_weight(weight, mask_type, channel_groups, gates=2)
        features = masked_conv2d(x, live, bias, mask_type=mask_type, dilation=spread)
        features = features if addend is None else features + addend
        return gate(features) if x.dim() == 4 else gate(features.unsqueeze(0)).squeeze(0)
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    if addend is not None:
        addend = addend.expand(batched.shape[0], weight.shape[0], *batched.shape[2:])
    tensors = (batched, weight, bias, addend)
    y, _ = gated(*tensors, *GatedOptions(mask_type, channel_groups, spread, keep=may_need_derivative(*tensors)))
    return y if x.dim() == 4 else y.squeeze(0)


# --- checks --------------------------------------------------------------------------------------------------------


def check_options(mask_type: str, channel_groups: int, group_layout: str, activation: str | None) -> None:
    """Raise a ValueError that names the option that does not fit."""
    if mask_type not in MASK_TYPES:
        raise ValueError(f"mask_type: expected 'A' or 'B'; got {mask_type!r}")
    if not isinstance(channel_groups, int) or channel_groups < 1:
        raise ValueError(f"channel_groups: expected a whole number of at least 1; got {channel_groups!r}")
    if group_layout not in GROUP_LAYOUTS:
        raise ValueError(f"group_layout: expected 'blocks' or 'interleaved'; got {group_layout!r}")
    if activation not in (None, "relu"):
        raise ValueError(f"activation: expected None or 'relu'; got {activation!r}")


def check_dilation(dilation: int | Sequence[int]) -> tuple[int, int]:
    """The dilation as (vertical, horizontal), or a ValueError."""
    pair = tuple(dilation) if isinstance(dilation, Sequence) else (dilation, dilation)
    if len(pair) != 2 or any(not isinstance(d, int) or d < 1 for d in pair):
        raise ValueError(f"dilation: expected one or two whole numbers of at least 1; got {dilation!r}")
    return pair[0], pair[1]


def check_tensors(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, prefix: str = "", end: str = "") -> None:
    """Raise an error that says what does not fit; prefix and end make up the names of weight and bias."""
    weight_name, bias_name = (f"{prefix}{name}{end}" for name in ("weight", "bias"))
    named = [("x", x), (weight_name, weight)] + ([] if bias is None else [(bias_name, bias)])
    for name, tensor in named:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor; got {type(tensor).__name__}")
    if x.dim() not in (3, 4):
        raise ValueError(f"x: expected [N, C, H, W] or [C, H, W]; got shape {list(x.shape)}")
    if weight.dim() != 4:
        raise ValueError(f"{weight_name}: expected [out_channels, in_channels, kh, kw]; got shape {list(weight.shape)}")
    out_channels, in_channels, height, width = weight.shape
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"{weight_name}: expected an odd kernel, so that there is a centre tap; got {height}x{width}")
    if x.shape[-3] != in_channels:
        raise ValueError(f"x: expected {in_channels} channels, as {weight_name} has; got shape {list(x.shape)}")
    if min(out_channels, in_channels) < groups:
        raise ValueError(
            f"channel_groups: expected at most min(out_channels, in_channels) = {min(out_channels, in_channels)}; "
            f"got {groups}"
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != out_channels):
        raise ValueError(f"{bias_name}: expected shape [{out_channels}]; got {list(bias.shape)}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"x: expected a floating-point dtype; got {x.dtype}")
    for name, tensor in named[1:]:
        check_like(name, tensor, x)


def check_like(name: str, tensor: Tensor, x: Tensor) -> None:
    """Raise an error unless the tensor has the device of x, and its dtype or one that autocast will change."""
    if tensor.device != x.device:
        raise ValueError(f"{name}: expected the device of x, {x.device}; got {tensor.device}")
    if tensor.dtype != x.dtype and not autocast_is_on(x.device.type):
        raise TypeError(f"{name}: expected the dtype of x, {x.dtype}; got {tensor.dtype}")


def _check_gate(x: Tensor, weight: Tensor, addend: Tensor | None, groups: int) -> None:
    channels = weight.shape[0]
    if channels % 2:
        raise ValueError(f"weight: expected an even number of out_channels, two for each unit; got {channels}")
    if min(channels // 2, weight.shape[1]) < groups:
        raise ValueError(
            f"channel_groups: expected at most min(out_channels / 2, in_channels) = "
            f"{min(channels // 2, weight.shape[1])}; got {groups}"
        )
    if addend is None:
        return
    if not isinstance(addend, Tensor):
        raise TypeError(f"addend: expected a torch.Tensor or None; got {type(addend).__name__}")
    shape = (*x.shape[:-3], channels, *x.shape[-2:])
    fits = addend.dim() <= len(shape) and all(
        own in (1, size) for own, size in zip(addend.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"addend: expected a shape that broadcasts to {list(shape)}; got {list(addend.shape)}")
    check_like("addend", addend, x)
