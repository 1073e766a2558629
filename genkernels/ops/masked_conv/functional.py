"""The masked convolution: the public function, its checks, and the kernels of its operators by device."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from ...triton_conv import availability
from ..core.dispatch_bypass import are_plain, is_open
from ..core.implementations import last
from ..core.layout import empty_gradients, empty_output, input_format, output_format
from ..core.prepared_call import MOST_CALLS, Key, Ready, key_of, worth_keeping
from ..core.verbose import is_on, like, say
from . import cpu, reference, schema
from .derivatives import backward, forward
from .mask import GROUP_LAYOUTS, MASK_TYPES, MaskSpec

_OPTIONS = "str mask_type, int channel_groups, str group_layout, int[2] dilation, str activation"

_Needs = tuple[bool, bool, bool]
_Pair = tuple[int, int]


# --- the public function ---------------------------------------------------------------------------------------

_ready: dict[Key | None, Ready] = {}


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
    if is_open(x) and are_plain(weight, bias) and type(dilation) in (int, tuple):
        key = key_of(x, weight, bias, (mask_type, channel_groups, group_layout, dilation, activation))
        ready = _ready.get(key)
        if ready is not None and not is_on():
            return ready(x, weight, bias)
    check_options(mask_type, channel_groups, group_layout, activation)
    spread = check_dilation(dilation)
    check_tensors(x, weight, bias, channel_groups)
    if key is not None and cpu.why_not(x) is None and worth_keeping(x, weight, bias):
        if len(_ready) >= MOST_CALLS:
            _ready.clear()
        spec = _spec(weight, mask_type, channel_groups, group_layout)
        _ready[key] = Ready(x, weight, spec, spread, activation or "none")
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    y = forward(batched, weight, bias, mask_type, channel_groups, group_layout, spread, activation or "none")
    if is_on() and not torch.compiler.is_compiling():
        _say(x, weight, bias, mask_type, channel_groups, group_layout, spread, activation)
    return y if x.dim() == 4 else y.squeeze(0)


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


def check_dilation(dilation: int | Sequence[int]) -> _Pair:
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
    if tensor.dtype != x.dtype and not _autocast_is_on(x.device.type):
        _refuse_dtype(name, tensor, x)


def _autocast_is_on(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _refuse_dtype(name: str, tensor: Tensor, x: Tensor) -> NoReturn:
    raise TypeError(f"{name}: expected the dtype of x, {x.dtype}; got {tensor.dtype}")


# --- kernels ---------------------------------------------------------------------------------------------------


def _say(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    mask_type: str, channel_groups: int, group_layout: str, dilation: _Pair, activation: str | None,
) -> None:  # fmt: skip
    kernel = "the CPU kernel" if x.is_cpu else "the Triton kernel"
    reason = cpu.why_not(x) if x.is_cpu else availability.why_not(x)
    if x.is_cpu and reason is None and x.numel() > 0:
        kernel += f" {last()}"
    tensors = f"{like(x)}, {like(weight)}, {like(bias)}"
    say(
        "masked_conv2d",
        kernel if reason is None else "the reference in plain PyTorch",
        reason or "it skips what is masked",
        f"genkernels.ops.masked_conv2d({tensors}, {mask_type=}, {channel_groups=}, {group_layout=}, {dilation=}, "
        f"{activation=})",
    )


def _spec(weight: Tensor, mask_type: str, channel_groups: int, group_layout: str) -> MaskSpec:
    out_channels, in_channels, height, width = weight.shape
    return MaskSpec(out_channels, in_channels, (height, width), mask_type, channel_groups, group_layout)


def _dilation(pair: Sequence[int]) -> _Pair:
    return pair[0], pair[1]  # the dispatcher hands over a list; the caches of cpu.py and mask.py need a tuple


def _forward_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    mask_type: str, channel_groups: int, group_layout: str, dilation: Sequence[int], activation: str,
) -> Tensor:  # fmt: skip
    spec = _spec(weight, mask_type, channel_groups, group_layout)
    y = reference.forward(x, weight, bias, spec, _dilation(dilation), activation)
    return y.contiguous(memory_format=output_format(x, weight))


def _backward_reference(
    grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None,
    mask_type: str, channel_groups: int, group_layout: str, dilation: Sequence[int], activation: str,
    needs: _Needs,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    spec = _spec(weight, mask_type, channel_groups, group_layout)
    grad_x, grad_weight, grad_bias = reference.backward(
        grad_output, x, weight, output, spec, _dilation(dilation), activation, needs
    )
    return (
        x.new_empty(0) if grad_x is None else grad_x.contiguous(memory_format=input_format(x)),
        x.new_empty(0) if grad_weight is None else torch.empty_like(weight).copy_(grad_weight),
        x.new_empty(0) if grad_bias is None else grad_bias,
    )


def _kernels(x: Tensor) -> ModuleType | None:
    """The kernels that take x, or None where the reference does."""
    if x.is_cpu:
        return cpu if cpu.why_not(x) is None else None
    if not x.is_cuda or availability.why_not(x) is not None:
        return None
    from . import gpu  # here, since it imports Triton

    return gpu


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    kernels = _kernels(x)
    if kernels is None:
        return _forward_reference(x, weight, bias, *options)
    mask_type, channel_groups, group_layout, dilation, activation = options
    spec = _spec(weight, mask_type, channel_groups, group_layout)
    return kernels.forward(x, weight, bias, spec, _dilation(dilation), activation)


def _backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _kernels(x)
    if kernels is None:
        return _backward_reference(grad_output, x, weight, output, *options)
    mask_type, channel_groups, group_layout, dilation, activation, needs = options
    spec = _spec(weight, mask_type, channel_groups, group_layout)
    return kernels.backward(grad_output, x, weight, output, spec, _dilation(dilation), activation, needs)


def _formula(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    *mask, dilation, activation = options
    return reference.forward(x, weight, bias, _spec(weight, *mask), _dilation(dilation), activation)


forward.use_directly(_forward, tensors=3)
forward.use_formula(_formula)
backward.use_directly(_backward, tensors=4)
schema.library.impl("masked_conv2d", _forward, "CompositeExplicitAutograd")
schema.library.impl("masked_conv2d_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("genkernels::masked_conv2d", lib=schema.library)
def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    return empty_output(x, weight)


@torch.library.register_fake("genkernels::masked_conv2d_backward", lib=schema.library)
def _backward_fake(
    grad_output: Tensor, x: Tensor, weight: Tensor, output: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients(x, weight, options[-1])


# --- autocast --------------------------------------------------------------------------------------------------


def cast_for(device_type: str, x: Tensor, **others: Tensor | None) -> list[Tensor | None]:
    """All of them in the dtype of this device's autocast; float64 stays, as it does for PyTorch's own convolutions."""
    dtype = torch.get_autocast_dtype(device_type)
    result: list[Tensor | None] = []
    for name, tensor in {"x": x, **others}.items():
        cast = tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)
        if cast is not None and cast.dtype != (dtype if x.dtype != torch.float64 else torch.float64):
            _refuse_dtype(name, cast, x)
        result.append(cast)
    return result


def _register_autocast(device_type: str, key: torch._C.DispatchKey) -> None:
    def forward_autocast(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        tensors = cast_for(device_type, x, weight=weight, bias=bias)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return forward(*tensors, *options)

    schema.library.impl("masked_conv2d", forward_autocast, key.name)


_register_autocast("cpu", torch._C.DispatchKey.AutocastCPU)
_register_autocast("cuda", torch._C.DispatchKey.AutocastCUDA)
