"""Layers called one after the other in a forward of one's own, where ``torch.fx`` shows it.

The forward pass of one module is traced with its children as black boxes. Where a convolution goes into a norm or an
activation and nowhere else, or there is an instance norm, the calls become one; the rest of the pass is what it was.
The traced pass stands for the original only while everything that could steer it stays: the number of arguments, the
attributes that it read, and which children there are (tracing.py). Else the original runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.graph import Graph
from torch.fx.node import Node

from .blocks import (
    ACTIVATIONS,
    CONVOLUTIONS,
    NORMS,
    activation_of,
    is_for_kernel,
    is_instance_norm,
    run_block,
    why_no_run,
    why_not,
)
from .report import Reason
from .swap import Swapped, swap
from .tracing import Guards, Trace, trace

_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", "relu": "relu",
    torch.tanh: "tanh", "tanh": "tanh",
    torch.sigmoid: "sigmoid", "sigmoid": "sigmoid",
}  # fmt: skip
_CALLS: dict[str, Callable[[Any], Any]] = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


class GraphPlan:
    """The runs of a module's pass, by the names of their layers, and what has to stay for the trace to hold.

    The traced function itself is made with the swap, and again in every copy.
    """

    def __init__(self, runs: tuple[tuple[str, ...], ...], arguments: int, guards: Guards) -> None:
        self.runs, self.arguments, self.guards = runs, arguments, guards
        self.function: Callable[..., Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "function": None}


def find_runs(module: nn.Module, graph: Graph) -> list[tuple[list[Node], str | None]]:
    """Nodes that can become one call, each list with the reason why it is left, or None."""
    found: list[tuple[list[Node], str | None]] = []
    taken: set[Node] = set()
    for node in graph.nodes:
        first = _module(module, node)
        is_first = type(first) in CONVOLUTIONS or is_instance_norm(first)
        if node in taken or not is_first or len(node.args) != 1 or node.kwargs:
            continue
        conv = None if is_instance_norm(first) else first
        after: Node | None = node if conv is None else _only_reader(node)
        norm = None if after is None else _module(module, after)
        norm = norm if type(norm) in NORMS else None
        run = [node] if norm is None or after is None or after is node else [node, after]
        if norm is not None and after is not None:
            after = _only_reader(after)
        if after is not None and _activation(module, after) is not None:
            run.append(after)
        if len(run) == 1 and norm is None:
            following = None if after is None else _only_reader(after)
            near = [None if n is None else _module(module, n) for n in (after, following)]
            reason = why_no_run(*near)
            if after is not None and reason is not None:
                found.append(([node, after], reason))
            continue
        last = _module(module, run[-1])
        layer = last if type(last) in ACTIVATIONS else None
        reason = why_not(conv, norm, layer)
        if reason is not None and conv is not None and is_instance_norm(norm) and why_not(None, norm, layer) is None:
            run, reason = run[1:], None  # it does without the convolution
        taken.update(run)
        found.append((run, reason))
    return found


def _module(root: nn.Module, node: Node) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _only_reader(node: Node) -> Node | None:
    """The one node that reads this one, with it as the only argument."""
    readers = list(node.users)
    if len(readers) != 1:
        return None
    reader = readers[0]
    alone = reader.args[:1] == (node,) and len(reader.all_input_nodes) == 1
    return reader if alone and reader.op in ("call_module", "call_function", "call_method") else None


def _activation(root: nn.Module, node: Node) -> tuple[str | None, float] | None:
    if node.op == "call_module":
        module = _module(root, node)
        if type(module) in ACTIVATIONS and not getattr(module, "negative_slope", 0) < 0:
            return activation_of(module)
        return None
    if len(node.args) == 1 and (not node.kwargs or set(node.kwargs) == {"inplace"}) and node.target in _FUNCTIONS:
        return _FUNCTIONS[node.target], 0.01
    slope = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
    if node.target is F.leaky_relu and isinstance(slope, (int, float)) and slope >= 0:
        return "leaky_relu", float(slope)
    return None


def run_nodes(conv: Any, norm: Any, layer: Any, activation: str | None, slope: float, x: Any) -> Any:
    """A run in the traced pass; ``layer`` is the activation where it is a module."""
    still = type(conv) in CONVOLUTIONS if conv is not None else is_instance_norm(norm)
    still = still and (norm is None or type(norm) in NORMS) and (layer is None or type(layer) in ACTIVATIONS)
    if still:
        name, factor = (activation, slope) if layer is None else activation_of(layer)
        layers = [part for part in (conv, norm, layer) if part is not None]
        if is_for_kernel(layers, conv, norm, name, factor, x):
            return run_block(conv, norm, name, factor, x)
    y = x if conv is None else conv(x)
    if norm is not None:
        y = norm(y)
    if layer is not None:
        return layer(y)
    if activation is None:
        return y
    return F.leaky_relu(y, slope) if activation == "leaky_relu" else _CALLS[activation](y)


def swap_forward(module: nn.Module, runs: tuple[tuple[str, ...], ...], traced: Trace) -> None:
    plan = GraphPlan(runs, traced.arguments, traced.guards)
    plan.function = build(module, runs)
    swap(module, AcceleratedForward, plan)


def names_of(run: list[Node]) -> tuple[str, ...]:
    return tuple(node.name for node in run)


def operator_of(module: nn.Module, run: list[Node]) -> str:
    return "instance_norm_act" if any(is_instance_norm(_module(module, node)) for node in run) else "conv_bn_act"


def build(module: nn.Module, runs: tuple[tuple[str, ...], ...]) -> Callable[..., Any] | None:
    """The traced pass with its runs as single calls, a function of (module, *arguments)."""
    traced = trace(module)
    if isinstance(traced, Reason):
        return None
    graph = traced.graph
    by_name = {node.name: node for node in graph.nodes}
    for names in runs:
        if any(name not in by_name for name in names):
            return None
        nodes = [by_name[name] for name in names]
        first, last = nodes[0], nodes[-1]
        conv = first if type(_module(module, first)) in CONVOLUTIONS else None
        norm = next((n for n in nodes if type(_module(module, n)) in NORMS), None)
        activation = _activation(module, last) or (None, 0.01)
        layer = last if type(_module(module, last)) in ACTIVATIONS else None
        with graph.inserting_before(first):
            parts = [None if n is None else graph.get_attr(str(n.target)) for n in (conv, norm, layer)]
            call = graph.call_function(run_nodes, (*parts, *activation, first.args[0]))
        last.replace_all_uses_with(call)
        for node in reversed(nodes):
            graph.erase_node(node)
    code = graph.python_code("self")
    names_in_code: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, "<genkernels.accelerate>", "exec"), names_in_code)
    return names_in_code["forward"]


class AcceleratedForward(Swapped):
    """A module whose own forward calls its layers; some of these calls are one now."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self._genkernels_plan
        if plan is None or plan.function is None or kwargs or len(args) != plan.arguments:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if not plan.guards.hold(self):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        return plan.function(self, *args)

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        if self._genkernels_plan is not None:
            self._genkernels_plan.function = build(self, self._genkernels_plan.runs)
