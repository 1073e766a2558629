"""Runs of convolution, norm and activation: found in a Sequential, and run as one operator, or two.

With a batch norm, or none, a run is one operator. An instance norm and its activation are one of their own: before it
goes the convolution by whichever operator is quicker, or none at all.

The layers stay where they are; the fused pass reads their parameters, buffers and settings at every call. Where it
cannot speak for them (hooks, an unusual input) or would be slower, they are called one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..nn.conv_bn_act import norm_options
from ..nn.instance_norm_act import normalise
from ..ops.conv_bn_act.heuristics import has_instance_norm, is_settled, is_tiny, prefers_torch
from ..ops.core.torch_internals import global_module_hooks_exist
from .swap import Swapped, is_hooked, original_class

MOST_SHAPES = 256  # of tiny inputs that a Sequential keeps in mind
CONVOLUTIONS = (nn.ConvTranspose2d, nn.Conv2d)
NORMS = (nn.BatchNorm2d, nn.InstanceNorm2d)
ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}

# Layers that people put behind a convolution, and that no operator has.
_FOLLOWERS = (
    nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.SyncBatchNorm,
    nn.SiLU, nn.GELU, nn.ELU, nn.SELU, nn.PReLU, nn.Mish, nn.Hardswish, nn.Softplus, nn.ReLU6,
)  # fmt: skip
_KNOWN = ", ".join([*(norm.__name__ for norm in NORMS), *(kind.__name__ for kind in ACTIVATIONS)])

Activation = tuple[str | None, float]


@dataclass(frozen=True)
class Run:
    """Children start .. stop - 1 of a Sequential: a convolution, a norm, an activation; without a norm, or with an
    instance norm without a convolution, or without an activation."""

    start: int
    stop: int


@dataclass(frozen=True)
class SequentialPlan:
    """The runs, and the classes of all children as they were before any swap: these have to stay.

    ``tiny`` holds shapes of inputs that were too small for any run to take the kernel: looking at each run again would
    take a third of such a call.
    """

    runs: tuple[Run, ...]
    types: tuple[type[nn.Module], ...]
    tiny: set[torch.Size] = field(default_factory=set, compare=False)


def is_instance_norm(layer: Any) -> bool:
    return type(layer) is nn.InstanceNorm2d


def why_not(conv: nn.Module | None, norm: nn.Module | None, activation: nn.Module | None = None) -> str | None:
    """The reason why these layers cannot become one operator, or None."""
    if conv is not None:
        for name, wanted in (("groups", 1), ("dilation", (1, 1)), ("padding_mode", "zeros")):
            value = getattr(conv, name)
            if value != wanted:
                return f"{name} is {value!r}; the operator takes {wanted!r} only"
        if isinstance(conv.padding, str):
            return f"padding is {conv.padding!r}; the operator takes numbers"
    if isinstance(norm, nn.BatchNorm2d) and norm.momentum is None:
        return "its batch norm averages over all batches (momentum None)"
    if isinstance(norm, nn.InstanceNorm2d) and norm.track_running_stats:
        return "its instance norm keeps running statistics"
    for part in (conv, norm):
        if part is None:
            continue
        if is_hooked(part):
            return f"hooks on its {type(part).__name__} would not be called"
        if "forward" in part.__dict__:
            return f"the forward of its {type(part).__name__} is replaced on the instance"
        if any(name in ("weight_g", "weight_v", "weight_orig") for name, _ in part.named_parameters(recurse=False)):
            return "weight norm, spectral norm or pruning computes its weight"
    if activation is not None and is_hooked(activation):
        return f"hooks on its {type(activation).__name__} would not be called"
    if isinstance(activation, nn.LeakyReLU) and activation.negative_slope < 0:
        return "the slope of its LeakyReLU is negative"
    return None


def why_no_run(follower: nn.Module | None = None, after: nn.Module | None = None) -> str | None:
    """The layer behind a convolution that keeps it from being a run, as a reason; None where nothing was near one."""
    near = type(after) in (*NORMS, *ACTIVATIONS) and type(follower) not in CONVOLUTIONS
    if follower is None or not (near or isinstance(follower, _FOLLOWERS)):
        return None
    return f"{type(follower).__name__} follows; the operator has {_KNOWN}"


def runs_of(layers: Sequence[nn.Module]) -> list[tuple[Run, str | None]]:
    """The runs in a row of layers, each with the reason why it is left, or None."""
    found: list[tuple[Run, str | None]] = []
    index = 0
    while index < len(layers):
        conv = layers[index]
        if isinstance(conv, CONVOLUTIONS) and nn.utils.parametrize.is_parametrized(conv):
            found.append((Run(index, index + 1), "a parametrization computes its weight"))
        if type(conv) not in CONVOLUTIONS and not is_instance_norm(conv):
            index += 1
            continue
        stop = index + (type(conv) in CONVOLUTIONS)
        norm = layers[stop] if stop < len(layers) and type(layers[stop]) in NORMS else None
        stop += norm is not None
        activation = layers[stop] if stop < len(layers) and type(layers[stop]) in ACTIVATIONS else None
        stop += activation is not None
        if norm is not None or activation is not None:
            start, reason = index, why_not(conv if type(conv) in CONVOLUTIONS else None, norm, activation)
            if reason is not None and is_instance_norm(norm) and why_not(None, norm, activation) is None:
                start, reason = layers.index(norm, index), None  # it does without the convolution
            found.append((Run(start, stop), reason))
        else:
            reason = why_no_run(*layers[stop : stop + 2])
            if reason is not None:
                found.append((Run(index, stop + 1), reason))
        index = stop
    return found


def activation_of(module: nn.Module | None) -> Activation:
    if module is None:
        return None, 0.01
    slope = float(module.negative_slope) if type(module) is nn.LeakyReLU else 0.01
    return ACTIVATIONS[type(module)], slope


class AcceleratedSequential(Swapped):
    """``nn.Sequential`` whose runs are single operators; its children are what they were."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self._genkernels_plan
        tiny = plan is not None and len(args) == 1 and is_settled(args[0])
        if tiny and args[0].shape in plan.tiny:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        layers = list(self._modules.values())
        if len(args) != 1 or kwargs or plan is None or tuple(map(original_class, layers)) != plan.types:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        x, index = args[0], 0
        for run in plan.runs:
            for layer in layers[index : run.start]:
                x = layer(x)
            index = run.stop
            tiny = tiny and isinstance(x, Tensor) and not any(map(is_instance_norm, layers[run.start : run.stop]))
            tiny = tiny and is_tiny(x, layers[run.start])
            x = run_layers(layers[run.start : run.stop], x)
        for layer in layers[index:]:
            x = layer(x)
        if tiny and len(plan.tiny) < MOST_SHAPES:
            plan.tiny.add(args[0].shape)
        return x


def run_layers(layers: Sequence[Any], x: Any) -> Any:
    """A run, as one operator where that is possible and quicker."""
    conv = layers[0] if type(layers[0]) in CONVOLUTIONS else None
    norm = next((layer for layer in layers if type(layer) in NORMS), None)
    activation = layers[-1] if type(layers[-1]) in ACTIVATIONS else None
    name, slope = activation_of(activation)
    if is_for_kernel(layers, conv, norm, name, slope, x):
        return run_block(conv, norm, name, slope, x)
    for layer in layers:
        x = layer(x)
    return x


def is_for_kernel(layers: Sequence[Any], conv: Any, norm: Any, activation: str | None, slope: float, x: Any) -> bool:
    """Whether the operator takes a run, and is quicker; the cheap questions first."""
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
            norm(x)  # which says what is wrong with it
        # PyTorch's instance norm gives contiguous images whatever it gets, and somebody may count on it.
        return normalise(x.contiguous(), norm, activation, slope)
    options: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "activation": activation}
    options |= {"negative_slope": slope, **norm_options(norm)}
    if isinstance(conv, nn.ConvTranspose2d):
        return ops.conv_transpose2d_bn_act(x, conv.weight, conv.bias, output_padding=conv.output_padding, **options)
    return ops.conv2d_bn_act(x, conv.weight, conv.bias, **options)


def operators_of(layers: Sequence[nn.Module]) -> tuple[str, str]:
    """What runs a run, and in how many parts."""
    kind = type(layers[0])
    conv = {nn.ConvTranspose2d: "conv_transpose2d_bn_act", nn.Conv2d: "conv2d_bn_act"}.get(kind)
    if not any(map(is_instance_norm, layers)):
        return str(conv), "one operator"
    return "instance_norm_act", "one operator" if conv is None else f"one operator, after {conv}"


def trial_input_shape(first: nn.Module) -> tuple[int, int, int, int]:
    """Of an input of a run, by its first layer."""
    if isinstance(first, nn.InstanceNorm2d):
        return 2, first.num_features, 4, 5
    assert isinstance(first, CONVOLUTIONS)
    if isinstance(first, nn.ConvTranspose2d):
        return 2, first.in_channels, 4, 5
    height, width = (k + 3 * s + 1 for k, s in zip(first.kernel_size, first.stride, strict=True))
    return 2, first.in_channels, height, width + 1
