"""Convolution + batch norm + activation: the public functions and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.activation import check_activation
from ..core.autocast import autocast_is_on
from ..core.device_choice import description
from ..core.dtypes import accumulator
from ..core.verbose import is_on, like, log_choice
from . import dispatch  # noqa: F401 - registers the kernels
from .derivatives import conv_act, conv_bn_act
from .distributed import NO_VARIANCE, group_name
from .geometry import Geometry, Pair
from .heuristics import describe
from .schema import NormOptions, Options

_SHARED = """
    Args:
        x: [N, in, H, W] or [in, H, W]; float64, float32, bfloat16 or float16 (16-bit types accumulate in float32).
            Any strides; a tensor neither contiguous along W nor along the channels is copied once.
        weight: {weight}, as in torch.nn; the dtype and device of x.
        bias: [out] or None. Under batch norm in training it shifts the running mean and nothing else.
        stride, padding{output_padding}: one number or (vertical, horizontal).
        batch_norm: whether z is normalised, as ``nn.BatchNorm2d`` does.
        bn_weight, bn_bias: [out] or None (1 and 0); the dtype of x or float32.
        running_mean, running_var: [out] or None. In training they are updated in place (with the unbiased variance),
            in evaluation they are the statistics, folded into the convolution's result.
        training: normalise by the statistics of this batch.
        momentum: the weight of this batch in the update of the running statistics.
        eps: added to the variance.
        activation: None, "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu", at least 0.
        sync: take the statistics over all processes of the default group (True) or of a given process group;
            ``torch.distributed`` must be initialised. bn_weight and bn_bias get the gradients of this process' share.

    Returns:
        [N, out, H', W'] (or [out, H', W']), the dtype of x; channels_last where x is (or, where x fits both layouts,
        where weight is), else contiguous. {size}

    Differentiable any number of times (second derivatives through batch norm run in plain PyTorch); works under
    autocast, ``torch.compile`` and ``torch.func``. One pass makes z and the statistics, a second y; z alone is
    kept for backward, which applies the gradients of activation and batch norm while it reads for its two products (on
    a GPU in one pass before them, see triton_conv/gradient.py).

    Raises:
        ValueError: an argument does not fit; the message names it, what was expected and what came.
        TypeError: a dtype does not fit.

    Source: Radford, Metz, Chintala 2016, "Unsupervised Representation Learning with Deep Convolutional Generative
    Adversarial Networks", section 3; Ioffe & Szegedy 2015, "Batch Normalization", algorithm 1.
    """


def conv_transpose2d_bn_act(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0, output_padding: int | Sequence[int] = 0,
    batch_norm: bool = False, bn_weight: Tensor | None = None, bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None, running_var: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    activation: str | None = None, negative_slope: float = 0.01, sync: Any = False,
) -> Tensor:  # fmt: skip
    geometry = Geometry(
        True, _pair("stride", stride, 1), _pair("padding", padding, 0), _pair("output_padding", output_padding, 0)
    )
    if any(extra >= step for extra, step in zip(geometry.output_padding, geometry.stride, strict=True)):
        raise ValueError(
            f"output_padding: expected less than the stride {geometry.stride}; got {geometry.output_padding}"
        )
    norm = _BatchNorm(batch_norm, bn_weight, bn_bias, running_mean, running_var, training, momentum, eps, sync)
    return _block(x, weight, bias, geometry, norm, activation, negative_slope)


def conv2d_bn_act(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0,
    batch_norm: bool = False, bn_weight: Tensor | None = None, bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None, running_var: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    activation: str | None = None, negative_slope: float = 0.01, sync: Any = False,
) -> Tensor:  # fmt: skip
    geometry = Geometry(False, _pair("stride", stride, 1), _pair("padding", padding, 0), (0, 0))
    norm = _BatchNorm(batch_norm, bn_weight, bn_bias, running_mean, running_var, training, momentum, eps, sync)
    return _block(x, weight, bias, geometry, norm, activation, negative_slope)


conv_transpose2d_bn_act.__doc__ = """Transposed convolution, batch norm and activation in one block.

    ``y = act(bn(conv_transpose2d(x, weight, bias, stride, padding, output_padding)))``, groups and dilation 1. A stride
    of s is s * s dense convolutions, one per phase of the result: no zeros are inserted, and taps that fall outside the
    image cost nothing.
""" + _SHARED.format(
    weight="[in, out, kh, kw]",
    output_padding=", output_padding",
    size="H' = (H - 1) * stride - 2 * padding + kh + output_padding.",
)
conv2d_bn_act.__doc__ = """Convolution, batch norm and activation in one block.

    ``y = act(bn(conv2d(x, weight, bias, stride, padding)))``, groups and dilation 1.
""" + _SHARED.format(weight="[out, in, kh, kw]", output_padding="", size="H' = (H + 2 * padding - kh) // stride + 1.")


class _BatchNorm(NamedTuple):
    """The batch norm of a call, as the public functions take it."""

    batch_norm: bool
    bn_weight: Tensor | None
    bn_bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    training: bool
    momentum: float
    eps: float
    sync: Any

    def tensors(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in ("bn_weight", "bn_bias", "running_mean", "running_var")}


def _block(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, norm: _BatchNorm,
    activation: str | None, negative_slope: float,
) -> Tensor:  # fmt: skip
    check_activation(activation, negative_slope)
    _check_tensors(x, weight, bias, norm.tensors(), geometry)
    _check_norm(norm)
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    _check_size(batched, weight, geometry)
    options = Options(
        geometry.transposed, geometry.stride, geometry.padding, geometry.output_padding,
        activation or "none", float(negative_slope),
    )  # fmt: skip
    if not norm.batch_norm:
        y = conv_act(batched, weight, None, bias, *options)
    elif not norm.training:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale, shift = folded(bias, norm.bn_weight, norm.bn_bias, norm.running_mean, norm.running_var, norm.eps)
        y = conv_act(batched, weight, scale, shift, *options)
    else:
        y = _normed_by_batch(batched, weight, bias, geometry, norm, options)
    if is_on() and y.numel() > 0 and not torch.compiler.is_compiling():
        _log(batched, weight, bias, norm, geometry, {"activation": activation, "negative_slope": negative_slope})
    return y if x.dim() == 4 else y.squeeze(0)


def _normed_by_batch(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, norm: _BatchNorm, options: Options
) -> Tensor:
    """By the statistics of the batch, which move the running ones."""
    group = group_name(norm.sync)
    values = x.shape[0] * _output_pixels(x, weight, geometry)
    if values == 1 and not group:  # over a group the operator looks, once the processes have told their counts
        raise ValueError(NO_VARIANCE)
    bn_bias = norm.bn_bias
    if bias is not None:  # normalising takes it away again, but its gradient is zero and not missing
        bn_bias = 0 * bias if bn_bias is None else bn_bias + 0 * bias
    y, _, statistics = conv_bn_act(x, weight, norm.bn_weight, bn_bias, *NormOptions(*options, norm.eps, group))
    if values > 0 or group:
        update_running(norm.running_mean, norm.running_var, statistics, bias, norm.momentum, may_be_empty=values == 0)
    return y


def _log(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: _BatchNorm, geometry: Geometry, options: dict[str, Any]
) -> None:
    """Print what has run a call, and why."""
    options |= {"batch_norm": norm.batch_norm, "training": norm.training}
    options |= {"stride": geometry.stride, "padding": geometry.padding}
    options |= {"output_padding": geometry.output_padding} if geometry.transposed else {}
    tensors = [like(x), like(weight), like(bias), *(f"{name}={like(t)}" for name, t in norm.tensors().items())]
    name = "conv_transpose2d_bn_act" if geometry.transposed else "conv2d_bn_act"
    line = ", ".join([*tensors, *(f"{key}={value!r}" for key, value in options.items())])
    low_pixels = x.shape[2] * x.shape[3] if geometry.transposed else _output_pixels(x, weight, geometry)
    size = describe(x, x.shape[0] * low_pixels * weight.numel(), weight.shape[2] * weight.shape[3])
    log_choice("conv_bn_act", *description(x, size), f"genkernels.ops.{name}({line})")


def folded(
    bias: Tensor | None, bn_weight: Tensor | None, bn_bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """scale and shift such that ``bn(conv + bias) = scale * conv + shift``, by given statistics."""
    dtype = accumulator(mean.dtype)
    scale = (variance.to(dtype) + eps).rsqrt()
    if bn_weight is not None:
        scale = scale * bn_weight
    centre = -mean.to(dtype) if bias is None else bias - mean.to(dtype)
    return scale, centre * scale if bn_bias is None else centre * scale + bn_bias


def update_running(
    running_mean: Tensor | None, running_var: Tensor | None, statistics: Tensor, bias: Tensor | None, momentum: float,
    *, may_be_empty: bool,
) -> None:  # fmt: skip
    """In place, as nn.BatchNorm2d does: the variance unbiased.

    With ``may_be_empty`` no process may have had a value; then nothing changes (told without waiting for a GPU).
    """

    def update(running: Tensor, seen: Tensor) -> None:
        seen = seen.to(running.dtype)
        running.lerp_(torch.where(count > 0, seen, running) if may_be_empty else seen, momentum)

    with torch.no_grad():
        mean, variance, count = statistics.detach()
        if running_mean is not None:
            update(running_mean, mean if bias is None else mean + bias)
        if running_var is not None:
            update(running_var, variance * (count / (count - 1)))


# --- checks --------------------------------------------------------------------------------------------------------


def _pair(name: str, value: int | Sequence[int], least: int) -> Pair:
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or any(not isinstance(v, int) or isinstance(v, bool) or v < least for v in pair):
        raise ValueError(f"{name}: expected one or two whole numbers of at least {least}; got {value!r}")
    return pair[0], pair[1]


def _check_tensors(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: dict[str, Tensor | None], geometry: Geometry
) -> None:
    required: tuple[tuple[str, Any], ...] = (("x", x), ("weight", weight))
    for name, tensor in required:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor; got {type(tensor).__name__}")
    if x.dim() not in (3, 4):
        raise ValueError(f"x: expected [N, C, H, W] or [C, H, W]; got shape {list(x.shape)}")
    channels = "[in_channels, out_channels, kh, kw]" if geometry.transposed else "[out_channels, in_channels, kh, kw]"
    if weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(f"weight: expected {channels}; got shape {list(weight.shape)}")
    if x.shape[-3] != geometry.in_channels(weight):
        raise ValueError(
            f"x: expected {geometry.in_channels(weight)} channels, as weight has; got shape {list(x.shape)}"
        )
    if not x.dtype.is_floating_point:
        raise TypeError(f"x: expected a floating-point dtype; got {x.dtype}")
    autocast = autocast_is_on(x.device.type)
    named: list[tuple[str, Any]] = [("weight", weight), ("bias", bias), *norm.items()]
    for name, tensor in named:
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor or None; got {type(tensor).__name__}")
        if name != "weight" and (tensor.dim() != 1 or tensor.shape[0] != geometry.out_channels(weight)):
            raise ValueError(f"{name}: expected shape [{geometry.out_channels(weight)}]; got {list(tensor.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: expected the device of x, {x.device}; got {tensor.device}")
        if tensor.dtype == x.dtype or autocast:
            continue
        if name in ("weight", "bias"):
            raise TypeError(f"{name}: expected the dtype of x, {x.dtype}; got {tensor.dtype}")
        if tensor.dtype != accumulator(x.dtype):
            raise TypeError(f"{name}: expected {x.dtype} or {accumulator(x.dtype)}; got {tensor.dtype}")


def _check_norm(norm: _BatchNorm) -> None:
    if not norm.batch_norm:
        for name, tensor in norm.tensors().items():
            if tensor is not None:
                raise ValueError(f"{name}: expected None without batch_norm; got a tensor")
    elif not norm.training:
        for name in ("running_mean", "running_var"):
            if getattr(norm, name) is None:
                raise ValueError(f"{name}: expected a tensor, as training is False; got None")


def _check_size(x: Tensor, weight: Tensor, geometry: Geometry) -> None:
    if x.shape[2] < 1 or x.shape[3] < 1 or min(geometry.output_shape(x, weight)[2:]) < 1:
        raise ValueError(
            f"x: expected an image large enough for kernel {tuple(weight.shape[2:])}, stride {geometry.stride} and "
            f"padding {geometry.padding}; got {x.shape[2]}x{x.shape[3]}"
        )


def _output_pixels(x: Tensor, weight: Tensor, geometry: Geometry) -> int:
    _, _, height, width = geometry.output_shape(x, weight)
    return height * width
