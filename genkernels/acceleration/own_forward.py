"""Runs of convolution, norm and activation in a forward of one's own, where ``torch.fx`` shows it.

The forward pass of one module is traced with its children as black boxes. Where a convolution goes into a norm or an
activation and nowhere else, or there is an instance norm, the calls become one; the rest of the pass is what it was.
The traced pass stands for the original only while everything that could steer it stays: the number of arguments, the
attributes that it read, which children there are (tracing.py), and the classes of the runs' layers. Else the original
runs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.graph import Graph
from torch.fx.node import Node

from .blocks import (
    CONVOLUTIONS,
    NORMS,
    activation_of,
    first_run,
    is_instance_norm,
    run_layers,
)
from .report import Reason, Report
from .swap import Swapped, swap, unswap, why_no_swap
from .tracing import Trace, hold, trace
from .verify import CannotRunError, NotEquivalentError, check_equivalence, random_input

_FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU, torch.relu: nn.ReLU, "relu": nn.ReLU,
    torch.tanh: nn.Tanh, "tanh": nn.Tanh,
    torch.sigmoid: nn.Sigmoid, "sigmoid": nn.Sigmoid,
}  # fmt: skip
_TRIAL_SIZES = (8, 16, 32, 64)

Names: TypeAlias = tuple[str, ...]  # of the nodes of a run


# --- the swap --------------------------------------------------------------------------------------------------------


class ForwardPlan:
    """The runs of a module's pass, by the names of their nodes, and the guards of the trace.

    The traced function is of no module: copies share it. It cannot be pickled, and is made again on loading.
    """

    def __init__(self, module: nn.Module, runs: list[list[Node]], traced: Trace) -> None:
        self.runs, self.arguments = tuple(map(_names, runs)), traced.arguments
        layers = (str(node.target) for run in runs for node in run if node.op == "call_module")
        types = ((tuple(name.split(".")), "__class__", type(module.get_submodule(name))) for name in layers)
        self.guards = (*traced.guards, *types)
        self.function: Callable[..., Any] | None = _function(module, runs)

    def __deepcopy__(self, memo: Any) -> ForwardPlan:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "function": None}


class AcceleratedForward(Swapped):
    """A module whose own forward calls its layers; some of these calls are one now."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self._genkernels_plan
        is_traced = plan is not None and plan.function is not None and not kwargs and len(args) == plan.arguments
        if is_traced and hold(plan.guards, self):
            return plan.function(self, *args)
        return super().forward(*args, **kwargs)  # type: ignore[misc]

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        plan = self._genkernels_plan
        if plan is not None and plan.function is None:
            unswap(self)  # the original is traced
            traced = trace(self)
            found = [] if isinstance(traced, Reason) else find_runs(self, traced.graph)
            runs = [nodes for nodes, _ in found if _names(nodes) in plan.runs]
            if len(runs) == len(plan.runs):  # else the class has another forward now
                plan.function = _function(self, runs)
            swap(self, AcceleratedForward, plan)


def _function(module: nn.Module, runs: list[list[Node]]) -> Callable[..., Any]:
    """The traced pass with its runs as single calls, a function of (module, *arguments); their graph is changed."""
    graph = runs[0][0].graph
    for nodes in runs:
        first, last = nodes[0], nodes[-1]
        with graph.inserting_before(first):
            layers = [graph.get_attr(str(node.target)) for node in nodes if node.op == "call_module"]
            activation = (None, 0.01) if last.op == "call_module" else activation_of(_layer(module, last))
            call = graph.call_function(run_layers, (layers, first.args[0], activation))
        last.replace_all_uses_with(call)
        for node in reversed(nodes):
            graph.erase_node(node)
    code = graph.python_code("self")
    names: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, "<genkernels.accelerate>", "exec"), names)
    function: Callable[..., Any] = names["forward"]
    return function


# --- where it can be made --------------------------------------------------------------------------------------------


def attempt(name: str, module: nn.Module, report: Report, inputs: tuple[Any, ...] | None) -> None:
    """Swaps the runs in a forward of one's own, or notes why they are left; ``inputs``: what reaches it, if known."""
    if not any(type(part) in CONVOLUTIONS or is_instance_norm(part) for part in module.modules()):
        return
    kind = type(module).__name__
    traced = why_no_swap(module) or trace(module)
    if isinstance(traced, Reason):
        if name not in report and any(type(child) in CONVOLUTIONS for child in module.children()):
            report.note_left(name, kind, traced)
        return
    found = find_runs(module, traced.graph)
    cropped = " and ".join(_cropped(module, traced.graph))
    if not found and cropped and name not in report:
        report.note_left(name, kind, Reason(f"the padded result of {cropped} is cropped, which no operator does"))
    for nodes, reason in found:
        if reason is not None:
            report.note_left(name, kind, Reason(f"{' + '.join(_names(nodes))}: {reason}"))
    runs = [nodes for nodes, reason in found if reason is None]
    if not runs:
        return
    operators = [_operator_of(module, run) for run in runs]
    trials = [inputs] if inputs is not None else _guesses(module, traced.graph)
    plan = ForwardPlan(module, runs, traced)
    reason = _why_not_equivalent(module, plan, trials)
    for run, by in zip(plan.runs, operators, strict=True):
        if reason is None:
            report.note_swapped(name, kind, by, f"{' + '.join(run)}: one operator")
        else:
            report.note_left(name, kind, reason)
    if reason is None:
        swap(module, AcceleratedForward, plan)


def find_runs(module: nn.Module, graph: Graph) -> list[tuple[list[Node], Reason | None]]:
    """Nodes that can become one call, each list with the reason why it is left, or None."""
    found: list[tuple[list[Node], Reason | None]] = []
    taken: set[Node] = set()
    for node in graph.nodes:
        if node in taken or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        row = _row(module, node)
        begins = first_run([layer for _, layer in row]) if row else None
        if begins is not None:
            run, reason = begins
            nodes = [each for each, _ in row[run.start : run.stop]]
            taken.update(nodes)
            found.append((nodes, reason))
    return found


def _row(root: nn.Module, node: Node | None) -> list[tuple[Node, nn.Module]]:
    """A layer and up to two after it, each the only reader of the one before.

    A function counts as a layer where it is an activation behind a convolution or a norm.
    """
    row: list[tuple[Node, nn.Module]] = []
    while node is not None and len(row) < 3:
        layer = _layer(root, node)
        is_behind = bool(row) and type(row[-1][1]) in (*CONVOLUTIONS, *NORMS)
        if layer is None or (node.op != "call_module" and not is_behind):
            break
        row.append((node, layer))
        node = _only_reader(node)
    return row


def _module(root: nn.Module, node: Node) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _layer(root: nn.Module, node: Node) -> nn.Module | None:
    """The layer that a node calls, or one that does what an activation function does; else None."""
    layer = _module(root, node)
    if layer is not None:
        return None if isinstance(layer, nn.LeakyReLU) and layer.negative_slope < 0 else layer
    if node.op not in ("call_function", "call_method"):
        return None
    if len(node.args) == 1 and (not node.kwargs or set(node.kwargs) == {"inplace"}) and node.target in _FUNCTIONS:
        return _FUNCTIONS[node.target]()
    slope = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
    if node.target is F.leaky_relu and isinstance(slope, (int, float)) and slope >= 0:
        return nn.LeakyReLU(float(slope))
    return None


def _only_reader(node: Node) -> Node | None:
    """The one node that reads this one, with it as the only argument."""
    readers = list(node.users)
    if len(readers) != 1:
        return None
    reader = readers[0]
    alone = reader.args[:1] == (node,) and len(reader.all_input_nodes) == 1
    return reader if alone and reader.op in ("call_module", "call_function", "call_method") else None


def _names(nodes: list[Node]) -> Names:
    return tuple(node.name for node in nodes)


def _operator_of(module: nn.Module, run: list[Node]) -> str:
    return "instance_norm_act" if any(is_instance_norm(_module(module, node)) for node in run) else "conv_bn_act"


def _why_not_equivalent(module: nn.Module, plan: ForwardPlan, trials: list[tuple[Any, ...]]) -> Reason | None:
    """The reason why a plan does not stay, after the first trial that the module takes."""
    reason = Reason("give example= (an input of the model): what reaches it is not known")
    for trial in trials:
        if len(trial) != plan.arguments:
            reason = Reason(f"it is called with {len(trial)} of its {plan.arguments} arguments")
            continue
        try:
            check_equivalence(module, lambda taken: swap(taken, AcceleratedForward, plan), trial)
        except CannotRunError as error:
            reason = Reason(f"give example= (an input of the model): {error}")
        except NotEquivalentError as error:
            return Reason(str(error))
        else:
            return None
    return reason


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
        if isinstance(layer, CONVOLUTIONS):
            small = [1, 4] if isinstance(layer, nn.ConvTranspose2d) else []
            return [(random_input(module, (2, layer.in_channels, s, s)),) for s in (*small, *_TRIAL_SIZES)]
    return []
