"""Runs of convolution, batch norm and activation: found in a Sequential, and run as one operator.

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
from ..ops.conv_bn_act.choice import is_settled, is_tiny, prefers_torch
from .swap import Swapped, is_hooked, original_class

MOST_SHAPES = 256  # of tiny inputs that a Sequential keeps in mind
CONVOLUTIONS = (nn.ConvTranspose2d, nn.Conv2d)
ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}

# Layers that people put behind a convolution, and that no operator has.
_FOLLOWERS = (
    nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.SyncBatchNorm,
    nn.SiLU, nn.GELU, nn.ELU, nn.SELU, nn.PReLU, nn.Mish, nn.Hardswish, nn.Softplus, nn.ReLU6,
)  # fmt: skip
_KNOWN = ", ".join(["BatchNorm2d", *(kind.__name__ for kind in ACTIVATIONS)])

Activation = tuple[str | None, float]


@dataclass(frozen=True)
class Run:
    """Children start .. stop - 1 of a Sequential; a convolution, perhaps a norm, perhaps an activation."""

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


def why_not(conv: nn.Module, norm: nn.Module | None) -> str | None:
    """The reason why a convolution and the norm after it cannot become one operator, or None."""
    assert isinstance(conv, CONVOLUTIONS)
    for name, wanted in (("groups", 1), ("dilation", (1, 1)), ("padding_mode", "zeros")):
        value = getattr(conv, name)
        if value != wanted:
            return f"{name} is {value!r}; the operator takes {wanted!r} only"
    if isinstance(conv.padding, str):
        return f"padding is {conv.padding!r}; the operator takes numbers"
    if isinstance(norm, nn.BatchNorm2d) and norm.momentum is None:
        return "its batch norm averages over all batches (momentum None)"
    for part in (conv, norm):
        if part is None:
            continue
        if is_hooked(part):
            return f"hooks on its {type(part).__name__} would not be called"
        if "forward" in part.__dict__:
            return f"the forward of its {type(part).__name__} is replaced on the instance"
        if any(name in ("weight_g", "weight_v", "weight_orig") for name, _ in part.named_parameters(recurse=False)):
            return "weight norm, spectral norm or pruning computes its weight"
    return None


def runs_of(layers: Sequence[nn.Module]) -> list[tuple[Run, str | None]]:
    """The runs in a row of layers, each with the reason why it is left, or None."""
    found: list[tuple[Run, str | None]] = []
    index = 0
    while index < len(layers):
        conv = layers[index]
        if type(conv) not in CONVOLUTIONS:
            if isinstance(conv, CONVOLUTIONS) and nn.utils.parametrize.is_parametrized(conv):
                found.append((Run(index, index + 1), "a parametrization computes its weight"))
            index += 1
            continue
        stop = index + 1
        norm = layers[stop] if stop < len(layers) and type(layers[stop]) is nn.BatchNorm2d else None
        stop += norm is not None
        activation = layers[stop] if stop < len(layers) and type(layers[stop]) in ACTIVATIONS else None
        stop += activation is not None
        if stop > index + 1:
            reason = why_not(conv, norm)
            if reason is None and activation is not None and is_hooked(activation):
                reason = f"hooks on its {type(activation).__name__} would not be called"
            if reason is None and isinstance(activation, nn.LeakyReLU) and activation.negative_slope < 0:
                reason = "the slope of its LeakyReLU is negative"
            found.append((Run(index, stop), reason))
        elif stop < len(layers) and isinstance(layers[stop], _FOLLOWERS):
            follower = type(layers[stop]).__name__
            found.append((Run(index, stop + 1), f"{follower} follows; the operator has {_KNOWN}"))
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
            tiny = tiny and isinstance(x, Tensor) and is_tiny(x, layers[run.start])
            x = run_layers(layers[run.start : run.stop], x)
        for layer in layers[index:]:
            x = layer(x)
        if tiny and len(plan.tiny) < MOST_SHAPES:
            plan.tiny.add(args[0].shape)
        return x


def run_layers(layers: Sequence[Any], x: Any) -> Any:
    """A run, as one operator where that is possible and quicker."""
    conv, *rest = layers
    norm = rest[0] if type(rest[0]) is nn.BatchNorm2d else None
    activation = rest[-1] if len(rest) > (norm is not None) else None
    name, slope = activation_of(activation)
    if is_for_kernel(layers, norm, name, slope, x):
        return run_block(conv, norm, name, slope, x)
    for layer in layers:
        x = layer(x)
    return x


def is_for_kernel(layers: Sequence[Any], norm: Any, activation: str | None, slope: float, x: Any) -> bool:
    """Whether the operator takes a run, convolution first, and is quicker; the cheap questions first."""
    return (
        isinstance(x, Tensor)
        and x.dim() == 4
        and x.is_floating_point()
        and not prefers_torch(x, layers[0].weight, layers[0].bias, layers[0], norm, activation, slope)
        and x.shape[0] > 0
        and not any(map(is_hooked, layers))
        and not nn.modules.module._has_any_global_hook()
    )


def run_block(conv: Any, norm: Any, activation: str | None, slope: float, x: Tensor) -> Tensor:
    options: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "activation": activation}
    options |= {"negative_slope": slope, **norm_options(norm)}
    if isinstance(conv, nn.ConvTranspose2d):
        return ops.conv_transpose2d_bn_act(x, conv.weight, conv.bias, output_padding=conv.output_padding, **options)
    return ops.conv2d_bn_act(x, conv.weight, conv.bias, **options)


def trial_input_shape(conv: nn.Module) -> tuple[int, int, int, int]:
    assert isinstance(conv, CONVOLUTIONS)
    if isinstance(conv, nn.ConvTranspose2d):
        return 2, conv.in_channels, 4, 5
    height, width = (k + 3 * s + 1 for k, s in zip(conv.kernel_size, conv.stride, strict=True))
    return 2, conv.in_channels, height, width + 1
