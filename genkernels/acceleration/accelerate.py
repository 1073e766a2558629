"""``genkernels.accelerate`` and ``genkernels.restore``."""

from __future__ import annotations

import copy
import operator
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.graph import Graph
from torch.nn.parameter import is_lazy

from ..arguments import check_model
from ..ops.core.verbose import silent
from . import blocks, mask_recognition, masked, own_forward, recurrent
from .module_state import copy_of
from .report import Entry, Reason, Report
from .swap import ComputedWeight, Swapped, original_class, original_forward, swap, unswap, why_not
from .tracing import trace
from .verify import CannotRunError, NotEquivalentError, check_equivalence, random_input

_TRIAL_SIZES = (8, 16, 32, 64)
_ONE_AT_A_TIME = threading.RLock()  # trials seed PyTorch's generator, and set it back


def accelerate(model: nn.Module, *, example: Any = None) -> Report:
    """Makes an existing model faster, in place, and changes nothing else about it.

    Swapped are, each after a check on random inputs (training and evaluation, outputs, gradients, running statistics):

    * masked convolutions, however they are written: for :func:`genkernels.ops.masked_conv2d`, or, where the live taps
      are a rectangle (whole rows, as in the vertical stack of a Gated PixelCNN), for a convolution of these alone, at
      sizes where it is quicker; weight norm, spectral norm or a parametrization may compute the weight;
    * runs of ``ConvTranspose2d`` or ``Conv2d``, ``BatchNorm2d`` and ``ReLU``, ``LeakyReLU``, ``Tanh`` or ``Sigmoid``
      (norm or activation may be missing), in an ``nn.Sequential`` or in a forward that torch.fx can follow: for
      :func:`genkernels.ops.conv_transpose2d_bn_act` and :func:`genkernels.ops.conv2d_bn_act`, at sizes where these are
      quicker;
    * ``InstanceNorm2d`` and the activation after it, if any: for :func:`genkernels.ops.instance_norm_act`, with the
      convolution before it as above;
    * Row and Diagonal LSTM layers that loop in Python (:mod:`genkernels.acceleration.recurrent` says which): their
      state-to-state part a ``Conv1d``, or a ``Conv2d`` on single rows or columns, with a bias or without; states made
      by ``new_zeros`` or by ``torch.zeros``, not learned. A loop that makes float32 tensors whatever it is given runs
      itself again once the model is moved to another dtype.

    Modules keep their parameters, buffers, names, hooks and their class, of which they become a subclass; so
    checkpoints, optimisers, deepcopy, pickle, DistributedDataParallel and torch.compile work as before. Little is
    seen from outside. Masked taps get a gradient of exactly zero, also where the original writes zeros into its weight
    and leaves a gradient for them. A mask that changes later counts, but a compiled model keeps the one that was there
    when it was loaded or its operator last ran uncompiled, and on a GPU one written through ``.data`` is not noticed.
    Settings of a swapped layer (its stride, say) are not to be changed afterwards: call :func:`restore` first.

    Args:
        model: any module; swapped again without harm.
        example: an input of the model, a tensor or a tuple of them; it is run once, without gradients, to see what
            reaches modules with a forward of their own. Needed only where the report says so.

    Returns:
        What was swapped and what was left, with the reasons; print it for a table.

    Raises:
        TypeError: the model is no ``nn.Module``.
    """
    check_model(model)
    with _ONE_AT_A_TIME, silent(), torch.inference_mode(False), torch.enable_grad():  # gradients are compared
        return _accelerate(model, example)


def _accelerate(model: nn.Module, example: Any) -> Report:
    report = Report()
    reason = _why_nothing(model)
    if reason is not None:
        report.entries.append(Entry("", type(model).__name__, None, reason))
        return report
    inputs = {} if example is None else _inputs_of(model, example)
    owners = Counter(id(p) for part in model.modules() for p in part._parameters.values())
    done: set[int] = set()
    for name, module in list(model.named_modules()):
        if id(module) in done or isinstance(module, Swapped):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            done.update(id(part) for part in module.modules())
            report.entries.append(Entry(name, type(module).__name__, None, "it is a TorchScript module"))
        elif isinstance(module, _DENSE):
            _add(report, name, module, None, "a dense recurrence; the operators convolve along rows and diagonals")
        elif _recurrence(name, module, report) or _masked(name, module, report, owners):
            done.update(id(part) for part in module.modules() if not _is_input_part(module, part))
        elif type(module).forward is nn.Sequential.forward:
            _sequential(name, module, report)
        elif next(module.children(), None) is not None and not isinstance(module, _CONTAINERS):
            _own_forward(name, module, report, inputs.get(id(module)))
    return report


def restore(model: nn.Module) -> None:
    """Gives every module of a model its own forward pass back.

    Raises:
        TypeError: the model is no ``nn.Module``.
    """
    check_model(model)
    for module in model.modules():
        unswap(module)


def _why_nothing(model: nn.Module) -> str | None:
    for p in (*model.parameters(), *model.buffers()):
        if is_lazy(p):
            return "it has lazy parameters: run it once first"
        if p.is_meta:
            return "it lies on the meta device: nothing can be tried"
    return None


_DENSE = (nn.RNNBase, nn.RNNCellBase)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def _add(report: Report, name: str, module: nn.Module, swapped: str | None, detail: str) -> bool:
    kind = type(original_forward(module)).__name__
    report.entries.append(Entry(name, kind, swapped, detail))
    return swapped is not None


# --- masked convolutions and recurrences -----------------------------------------------------------------------------


def _masked(name: str, module: nn.Module, report: Report, owners: Counter[int]) -> bool:
    if not mask_recognition.is_candidate(module):
        return _untried(name, module, report, None)
    reason = why_not(module)
    plan = reason if reason is not None else mask_recognition.recognise(module)
    inner = [part for part in module.modules() if part is not module and not mask_recognition.is_computed_alone(part)]
    # What holds a tensor beside its weight, and no smaller part that does: the rest has nothing to do with masks.
    looks_masked = isinstance(module, nn.Conv2d) or (
        mask_recognition.has_extras(module) and not any(mask_recognition.is_candidate(part) for part in inner)
    )
    if plan is None or isinstance(plan, str):
        if plan is not None and looks_masked:
            _add(report, name, module, None, plan)
            return isinstance(plan, ComputedWeight)
        return _untried(name, module, report, plan)

    def swapper(copied: nn.Module) -> None:
        swap(copied, masked.AcceleratedMaskedConv2d, plan)

    weight = ".".join(plan.weight)
    twin = copy_of(module)  # to read a computed weight may change what it is computed from
    in_channels = masked.weight_of(twin, plan).shape[1]
    height, width = (k * d for k, d in zip(plan.kernel, plan.dilation, strict=True))
    try:
        for size in ((height + 1, width + 3), (height + 2, max(width // 2, 2))):
            x = random_input(module, (2, in_channels, *size))
            check_equivalence(copy_of(module), swapper, [x], live={weight: plan.live()})
    except NotEquivalentError as error:
        return _add(report, name, module, None, str(error)) if looks_masked else False
    if not plan.computed and mask_recognition.writes_its_weight(module, plan):
        if owners[id(masked.weight_of(module, plan))] > 1:
            return _add(report, name, module, None, "its weight, into which it writes zeros, is shared")
        plan = replace(plan, writes=True)
        masked.zero_masked_taps(module, plan)
    swapper(module)
    return _add(report, name, module, plan.operator, str(plan))


def _untried(name: str, module: nn.Module, report: Report, tried: str | None) -> bool:
    """A line for a module that holds a mask of its own, and none for others."""
    reason = mask_recognition.why_not_tried(module)
    return reason is not None and _add(report, name, module, None, tried or reason)


def _recurrence(name: str, module: nn.Module, report: Report) -> bool:
    plan = recurrent.recognise(module)
    if plan is None:
        return False
    reason = why_not(module)
    if isinstance(plan, str) or reason is not None:
        _add(report, name, module, None, reason or str(plan))
        return False
    swap(module, recurrent.AcceleratedLoop, plan)
    return _add(report, name, module, f"{plan.front}_lstm", str(plan))


def _is_input_part(module: nn.Module, part: nn.Module) -> bool:
    """The convolution inside a swapped recurrence, which goes on being called and may be masked."""
    plan = getattr(module, "_genkernels_plan", None)
    return isinstance(plan, recurrent.LoopPlan) and part is getattr(module, plan.input_part)


# --- blocks ----------------------------------------------------------------------------------------------------------


def _describe(layers: Sequence[str]) -> str:
    return " + ".join(layers)


def _sequential(name: str, module: nn.Module, report: Report) -> None:
    layers = [part for part in module._modules.values() if part is not None]
    if len(layers) < len(module._modules):
        return
    names = list(module._modules)
    kept = []
    for run, reason in blocks.runs_of(layers):
        part = layers[run.start : run.stop]
        if len(part) == 1 and mask_recognition.is_candidate(part[0]):
            continue  # it gets a line of its own
        where = f"{name}.{names[run.start]}" if name else names[run.start]
        where = where if run.stop == run.start + 1 else f"{where}-{names[run.stop - 1]}"
        kinds = _describe([type(layer).__name__ for layer in part])
        if reason is None:
            reason = why_not(module) or _check_run(part)
        if reason is None:
            kept.append(run)
            report.entries.append(Entry(where, kinds, *blocks.operators_of(part)))
        else:
            report.entries.append(Entry(where, kinds, None, reason))
    if kept:
        plan = blocks.SequentialPlan(tuple(kept), tuple(original_class(layer) for layer in layers))
        swap(module, blocks.AcceleratedSequential, plan)


def _check_run(layers: Sequence[nn.Module]) -> str | None:
    alone = nn.Sequential(*layers)
    plan = blocks.SequentialPlan((blocks.Run(0, len(layers)),), tuple(original_class(layer) for layer in layers))
    x = random_input(alone, blocks.trial_input_shape(layers[0]))
    try:
        check_equivalence(alone, lambda copied: swap(copied, blocks.AcceleratedSequential, plan), [x])
    except NotEquivalentError as error:
        return str(error)
    return None


def _own_forward(name: str, module: nn.Module, report: Report, inputs: tuple[Any, ...] | None) -> None:
    if not any(type(part) in blocks.CONVOLUTIONS or blocks.is_instance_norm(part) for part in module.modules()):
        return
    reason = why_not(module)
    traced = trace(module) if reason is None else Reason(reason)
    if isinstance(traced, Reason):
        reported = any(entry.name == name for entry in report.entries)
        if not reported and any(type(child) in blocks.CONVOLUTIONS for child in module.children()):
            _add(report, name, module, None, traced.text)
        return
    found = own_forward.find_runs(module, traced.graph)
    cropped = " and ".join(_cropped(module, traced.graph))
    if not found and cropped and not any(entry.name == name for entry in report.entries):
        _add(report, name, module, None, f"the padded result of {cropped} is cropped, which no operator does")
    kept, names_of_operators = [], []
    for run, reason in found:
        if reason is None:
            kept.append(own_forward.names_of(run))
            names_of_operators.append(own_forward.operator_of(module, run))
        else:
            _add(report, name, module, None, f"{_describe(own_forward.names_of(run))}: {reason}")
    if not kept:
        return

    def swapper(taken: nn.Module) -> None:
        own_forward.swap_forward(taken, tuple(kept), traced)

    error: str | None = "give example= (an input of the model): what reaches it is not known"
    trials = [inputs] if inputs is not None else _guesses(module, traced.graph)
    for trial in trials:
        if len(trial) != traced.arguments:
            error = f"it is called with {len(trial)} of its {traced.arguments} arguments"
            continue
        try:
            check_equivalence(module, swapper, trial)
        except CannotRunError as reason:
            error = f"give example= (an input of the model): {reason}"
        except NotEquivalentError as reason:
            error = str(reason)
            break
        else:
            error = None
            break
    for names, by in zip(kept, names_of_operators, strict=True):
        _add(report, name, module, None if error else by, error or f"{_describe(names)}: one operator")
    if error is None:
        swapper(module)


def _cropped(module: nn.Module, graph: Graph) -> list[str]:
    """Convolutions with padding of whose result only a part of the rows or columns is read."""
    names = []
    for node in graph.nodes:
        conv = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if type(conv) is not nn.Conv2d or conv.padding in ("valid", (0, 0)) or not node.users:
            continue
        if all(r.target is operator.getitem and r.args[0] is node and _crops(r.args[1]) for r in node.users):
            names.append(str(node.target))
    return names


def _crops(index: Any) -> bool:
    """Whether an index of [N, C, H, W] cuts rows or columns off at an end, and does nothing else to these."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (5 - len(parts))
    places = parts[2:4]
    whole = slice(None)
    return all(isinstance(part, slice) and part.step is None for part in places) and any(p != whole for p in places)


def _guesses(module: nn.Module, graph: Graph) -> list[tuple[Tensor, ...]]:
    """Inputs that a module with one argument may take, by the layer that reads it first."""
    places = [node for node in graph.nodes if node.op == "placeholder"]
    if len(places) != 1:
        return []
    for reader in places[0].users:
        layer = module.get_submodule(str(reader.target)) if reader.op == "call_module" else None
        while isinstance(layer, nn.Sequential) and len(layer):
            layer = layer[0]
        if isinstance(layer, nn.Linear):
            return [(random_input(module, (2, layer.in_features)),)]
        if isinstance(layer, nn.InstanceNorm2d):
            return [(random_input(module, (2, layer.num_features, s, s)),) for s in _TRIAL_SIZES]
        if isinstance(layer, blocks.CONVOLUTIONS):
            small = [1, 4] if isinstance(layer, nn.ConvTranspose2d) else []
            return [(random_input(module, (2, layer.in_channels, s, s)),) for s in (*small, *_TRIAL_SIZES)]
    return []


def _inputs_of(model: nn.Module, example: Any) -> dict[int, tuple[Any, ...]]:
    """What each module is given first when the model runs on the example, of which nothing remains."""
    arguments = example if isinstance(example, tuple) else (example,)
    twin = copy.deepcopy(model)
    pairs = list(zip(model.modules(), twin.modules(), strict=True))
    seen: dict[int, tuple[Any, ...]] = {}
    for own, copied in pairs:

        def note(_: nn.Module, args: tuple[Any, ...], own: nn.Module = own) -> None:
            seen.setdefault(id(own), args)

        copied.register_forward_pre_hook(note)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        twin(*arguments)
    return seen
