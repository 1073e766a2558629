"""Runs of convolution, norm and activation: what makes one, and how it runs as one operator, or two.

With a batch norm, or none, a run is one operator. An instance norm and its activation are one of their own: before it
goes the convolution by whichever operator is quicker, or none at all.

The layers stay where they are; the fused pass reads their parameters, buffers and settings at every call. Where it
cannot do what they do (hooks, an unusual input) or would be slower, they are called one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..nn.conv_bn_act import norm_options
from ..nn.instance_norm_act import normalise
from ..ops.conv_bn_act.heuristics import has_instance_norm, prefers_torch
from ..ops.core.torch_internals import global_module_hooks_exist
from .computed_weight import why_weight_is_computed
from .report import Reason
from .swap import is_hooked

CONVOLUTIONS = (nn.ConvTranspose2d, nn.Conv2d)
NORMS = (nn.BatchNorm2d, nn.InstanceNorm2d)
ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}

# Layers that often stand behind a convolution, and that no operator has.
_FOLLOWERS = (
    nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.SyncBatchNorm,
    nn.SiLU, nn.GELU, nn.ELU, nn.SELU, nn.PReLU, nn.Mish, nn.Hardswish, nn.Softplus, nn.ReLU6,
)  # fmt: skip
_KNOWN = ", ".join([*(norm.__name__ for norm in NORMS), *(kind.__name__ for kind in ACTIVATIONS)])

Activation = tuple[str | None, float]


@dataclass(frozen=True)
class Run:
    """Layers start .. stop - 1 of a row: a convolution, a norm and an activation, of which some may be missing."""

    start: int
    stop: int


def is_instance_norm(layer: Any) -> bool:
    return type(layer) is nn.InstanceNorm2d


def why_no_operator(
    conv: nn.Module | None, norm: nn.Module | None, activation: nn.Module | None = None
) -> Reason | None:
    """The reason why these layers cannot become one operator, or None."""
    if conv is not None:
        for name, wanted in (("groups", 1), ("dilation", (1, 1)), ("padding_mode", "zeros")):
            value = getattr(conv, name)
            if value != wanted:
                return Reason(f"{name} is {value!r}; the operator takes {wanted!r} only")
        if isinstance(conv.padding, str):
            return Reason(f"padding is {conv.padding!r}; the operator takes numbers")
    if isinstance(norm, nn.BatchNorm2d) and norm.momentum is None:
        return Reason("its batch norm averages over all batches (momentum None)")
    if isinstance(norm, nn.InstanceNorm2d) and norm.track_running_stats:
        return Reason("its instance norm keeps running statistics")
    for part in (conv, norm):
        if part is None:
            continue
        if is_hooked(part):
            return Reason(f"hooks on its {type(part).__name__} would not be called")
        if "forward" in part.__dict__:
            return Reason(f"the forward of its {type(part).__name__} is replaced on the instance")
        reason = why_weight_is_computed(part)
        if reason is not None:
            return reason
    if activation is not None and is_hooked(activation):
        return Reason(f"hooks on its {type(activation).__name__} would not be called")
    if isinstance(activation, nn.LeakyReLU) and activation.negative_slope < 0:
        return Reason("the slope of its LeakyReLU is negative")
    return None


def first_run(layers: Sequence[nn.Module]) -> tuple[Run, Reason | None] | None:
    """The run that a row of layers begins with, and the reason why it is left, or None; None where there is no run.

    Of a convolution without a run, the layer behind it is the reason, if it kept the convolution from being one.
    """
    conv = layers[0] if type(layers[0]) in CONVOLUTIONS else None
    if conv is None and not is_instance_norm(layers[0]):
        return None
    start, stop = 0, 0 if conv is None else 1
    norm = layers[stop] if stop < len(layers) and type(layers[stop]) in NORMS else None
    stop += norm is not None
    activation = layers[stop] if stop < len(layers) and type(layers[stop]) in ACTIVATIONS else None
    stop += activation is not None
    if norm is None and activation is None:
        reason = _why_no_run(*layers[1:3])
        return None if reason is None else (Run(0, 2), reason)
    reason = why_no_operator(conv, norm, activation)
    if reason is not None and is_instance_norm(norm) and why_no_operator(None, norm, activation) is None:
        start, reason = layers.index(norm), None  # it does without the convolution
    return Run(start, stop), reason


def _why_no_run(follower: nn.Module | None = None, after: nn.Module | None = None) -> Reason | None:
    near = type(after) in (*NORMS, *ACTIVATIONS) and type(follower) not in CONVOLUTIONS
    if follower is None or not (near or isinstance(follower, _FOLLOWERS)):
        return None
    return Reason(f"{type(follower).__name__} follows; the operator has {_KNOWN}")


def activation_of(module: nn.Module | None) -> Activation:
    if module is None:
        return None, 0.01
    slope = float(module.negative_slope) if type(module) is nn.LeakyReLU else 0.01
    return ACTIVATIONS[type(module)], slope


def run_layers(layers: Sequence[Any], x: Any, function: Activation = (None, 0.01)) -> Any:
    """A run, as one operator where that is possible and quicker; ``function``: an activation that is no layer."""
    conv = layers[0] if type(layers[0]) in CONVOLUTIONS else None
    norm = next((layer for layer in layers if type(layer) in NORMS), None)
    activation = layers[-1] if type(layers[-1]) in ACTIVATIONS else None
    name, slope = function if activation is None else activation_of(activation)
    if is_for_kernel(layers, conv, norm, name, slope, x):
        return run_block(conv, norm, name, slope, x)
    for layer in layers:
        x = layer(x)
    if function[0] is None:
        return x
    return F.leaky_relu(x, slope) if name == "leaky_relu" else getattr(torch, function[0])(x)


def is_for_kernel(layers: Sequence[Any], conv: Any, norm: Any, activation: str | None, slope: float, x: Any) -> bool:
    """Whether the operator takes a run, and is quicker; the cheap conditions first."""
    return (
        isinstance(x, Tensor)
        and x.dim() == 4
        and x.is_floating_point()
        and (
            has_instance_norm(norm, x)
            if is_instance_norm(norm)
            else not prefers_torch(x, conv.weight, conv.bias, conv, norm, activation, slope)
        )
        and x.shape[0] > 0
        and not any(map(is_hooked, layers))
        and not global_module_hooks_exist()
    )


def run_block(conv: Any, norm: Any, activation: str | None, slope: float, x: Tensor) -> Tensor:
    if is_instance_norm(norm):
        if conv is not None:
            is_torch = prefers_torch(x, conv.weight, conv.bias, conv, None, None, slope)
            x = conv(x) if is_torch else run_block(conv, None, None, slope, x)
        if x.shape[2] * x.shape[3] == 1:
            norm(x)  # raises PyTorch's error
        # PyTorch's instance norm gives contiguous images whatever it gets, and what follows may count on it.
        return normalise(x.contiguous(), norm, activation, slope)
    options: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "activation": activation}
    options |= {"negative_slope": slope, **norm_options(norm)}
    if isinstance(conv, nn.ConvTranspose2d):
        return ops.conv_transpose2d_bn_act(x, conv.weight, conv.bias, output_padding=conv.output_padding, **options)
    return ops.conv2d_bn_act(x, conv.weight, conv.bias, **options)
