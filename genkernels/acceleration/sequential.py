"""``nn.Sequential`` with runs of convolution, norm and activation: each run as one operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.conv_bn_act.heuristics import is_settled, is_tiny
from .blocks import CONVOLUTIONS, Run, first_run, is_instance_norm, run_layers
from .computed_weight import why_weight_is_computed
from .mask_candidates import is_candidate
from .report import Reason, Report
from .swap import Swapped, original_class, swap, why_no_swap
from .verify import NotEquivalentError, check_equivalence, random_input

_MOST_SHAPES = 256  # of tiny inputs that a plan keeps


@dataclass(frozen=True)
class SequentialPlan:
    """The runs, and the classes of all children as they were before any swap: while these stay, the plan holds.

    ``tiny`` holds shapes of inputs that were too small for any run to take the kernel: looking at each run again would
    take a third of such a call.
    """

    runs: tuple[Run, ...]
    types: tuple[type[nn.Module], ...]
    tiny: set[torch.Size] = field(default_factory=set, compare=False)


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
        if tiny and len(plan.tiny) < _MOST_SHAPES:
            plan.tiny.add(args[0].shape)
        return x


def attempt(name: str, module: nn.Module, report: Report) -> None:
    """Swaps the runs in a Sequential, or notes why they are left."""
    layers = [part for part in module._modules.values() if part is not None]
    if len(layers) < len(module._modules):
        return
    kept = []
    for run, reason in runs_of(layers):
        part = layers[run.start : run.stop]
        if len(part) == 1 and is_candidate(part[0]):
            continue  # it gets a line of its own
        where, kinds = _place(name, module, run), " + ".join(type(layer).__name__ for layer in part)
        reason = reason or why_no_swap(module) or _why_not_equivalent(part)
        if reason is None:
            kept.append(run)
            report.note_swapped(where, kinds, *_operators_of(part))
        else:
            report.note_left(where, kinds, reason)
    if kept:
        swap(module, AcceleratedSequential, SequentialPlan(tuple(kept), tuple(map(original_class, layers))))


def runs_of(layers: Sequence[nn.Module]) -> list[tuple[Run, Reason | None]]:
    """The runs in a row of layers, each with the reason why it is left, or None."""
    found: list[tuple[Run, Reason | None]] = []
    index = 0
    while index < len(layers):
        layer = layers[index]
        if isinstance(layer, CONVOLUTIONS) and nn.utils.parametrize.is_parametrized(layer):
            found.append((Run(index, index + 1), why_weight_is_computed(layer)))
        begins = first_run(layers[index:])
        if begins is not None:
            run, reason = begins
            found.append((Run(index + run.start, index + run.stop), reason))
        index += 1 if begins is None else run.stop
    return found


def _place(name: str, module: nn.Module, run: Run) -> str:
    """The name of a run: of its first layer in the model, and of its last one in the Sequential."""
    names = list(module._modules)
    first = f"{name}.{names[run.start]}" if name else names[run.start]
    return first if run.stop == run.start + 1 else f"{first}-{names[run.stop - 1]}"


def _why_not_equivalent(layers: Sequence[nn.Module]) -> Reason | None:
    alone = nn.Sequential(*layers)
    plan = SequentialPlan((Run(0, len(layers)),), tuple(map(original_class, layers)))
    x = random_input(alone, trial_input_shape(layers[0]))
    try:
        check_equivalence(alone, lambda taken: swap(taken, AcceleratedSequential, plan), [x])
    except NotEquivalentError as error:
        return Reason(str(error))
    return None


def _operators_of(layers: Sequence[nn.Module]) -> tuple[str, str]:
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
