"""A module's forward pass as a graph, its children as black boxes, and the guards under which the graph holds.

``torch.fx`` runs the forward once with a stand-in for the input and writes down the calls. What happens beside them is
not in the graph, so it is looked for: the pass runs on a copy, which must come out unchanged; random numbers must not
be drawn; gradients, autocast and checkpointing must not be switched for a part of it. Every attribute that the forward
reads on its way, its own or a child's, is kept with its value as a guard.

Why not Dynamo, whose guards are tested by many? It was tried in this place (torch 2.13, 13 models of the tests, the
forward compiled with a backend that changes nothing): it follows more forwards (dropped paths, checkpointing, results
kept as attributes) and costs about as much a call (10 to 70 us either way), but it takes from a model what must stay:
``torch.fx.symbolic_trace``, ``torch.jit.trace`` and ``make_fx`` refuse a function that Dynamo compiled; a hook that is
registered on a layer after the first call is not called (``skip_nnmodule_hook_guards``), nor is a global module hook; a
child that is swapped itself is traced through, and with it the choice between PyTorch and the kernel by size. A graph
belongs to one mode, one setting of gradients and one kind of size, so it is made, unchecked, within somebody's call
(0.1 to 0.4 s each, after 1.2 s and 144 MB for the import), where the two passes here take 8 ms, before any call. And
the graphs of a class share one limit of 8: a fifth width of a residual block, in training and in evaluation, is over it
and runs uncompiled. ``torch.fx`` alone has no guards at all: they are this file.
"""

from __future__ import annotations

import copy
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.graph import Graph

from ..ops.core.torch_internals import saved_tensors_hooks
from .module_state import Path, places_of, state_of
from .report import Reason

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
_AUTOCAST = ("cpu", "cuda")


@dataclass(frozen=True)
class Trace:
    """The graph of a pass, and its guards: what steered it, by (module, attribute, value), and has to stay.

    The attribute ``_modules`` stands for the names of a module's children, as far as they are not None.
    """

    graph: Graph
    guards: tuple[tuple[Path, str, Any], ...]

    @property
    def arguments(self) -> int:
        return sum(node.op == "placeholder" for node in self.graph.nodes)


def hold(guards: tuple[tuple[Path, str, Any], ...], module: nn.Module) -> bool:
    for path, name, value in guards:
        part: Any = module
        for step in path:
            part = None if part is None else part._modules.get(step)
        if (_names(part) if name == "_modules" else getattr(part, name, None)) != value:
            return False
    return True


def _names(module: nn.Module | None) -> tuple[str, ...] | None:
    return None if module is None else tuple(name for name, child in module._modules.items() if child is not None)


_ONE_AT_A_TIME = threading.RLock()  # torch.fx exchanges methods of nn.Module while it traces
_TRIALS = 3  # another thread may have drawn the random numbers


class _DrawsRandomNumbers(Reason):
    """One that may be another thread's doing."""


def trace(module: nn.Module) -> Trace | Reason:
    """The pass of a module, the same in training and evaluation; or why there is none."""
    with _ONE_AT_A_TIME:
        for _ in range(_TRIALS):
            found = _trace(module)
            if not isinstance(found, _DrawsRandomNumbers):
                break
        return found


def _trace(module: nn.Module) -> Trace | Reason:
    graphs: list[Graph] = []
    read: dict[tuple[Path, str], Any] = {}
    try:
        for other_mode in (True, False):
            twin = copy.deepcopy(module)
            if other_mode:
                twin.train(not twin.training)
            graph = _trace_once(twin, plain=other_mode, read=read)
            if isinstance(graph, Reason):
                return graph
            graphs.append(graph)
    except Exception as error:  # whatever somebody's forward does with a stand-in
        text = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        return Reason(f"torch.fx cannot follow its forward: {text}")
    if str(graphs[0]) != str(graphs[1]):
        return Reason("its forward does other things in training than in evaluation")
    for node in graphs[0].nodes:
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            return Reason("its forward makes tensors that do not depend on its input")
    for (path, name), value in read.items():
        if not _can_be_compared(value):
            return Reason(f"its forward reads {'.'.join((*path, name))}, whose changes would go unnoticed")
    containers = [(path, part) for path, part in places_of(module) if not path or isinstance(part, _CONTAINERS)]
    children = [(path, "_modules", _names(part)) for path, part in containers]
    attributes = [(path, name, copy.deepcopy(value)) for (path, name), value in read.items()]
    return Trace(graphs[0], (*children, *attributes))


def _trace_once(twin: nn.Module, *, plain: bool, read: dict[tuple[Path, str], Any]) -> Graph | Reason:
    """The graph of a copy in the mode that it is in; what the forward reads is added to ``read``."""
    with _random_numbers_kept() as drawn, _recorded_reads(twin) as seen, _surroundings(plain=plain):
        tracer, before = _Tracer(), state_of(twin)
        graph = tracer.trace(twin)
        if state_of(twin) != before:
            return Reason("its forward changes its attributes")
        if tracer.switched:
            return Reason("its forward switches gradients, autocast or checkpointing for a part of it")
        if drawn():
            return _DrawsRandomNumbers("its forward draws random numbers while it decides what to do")
    read.update({**seen, **read})
    return graph


class _Tracer(fx.Tracer):
    """Children are boxes, buffers are stand-ins too, and what surrounds a call is looked at."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.outside, self.switched = _seen_outside(), False
        self.thread = threading.get_ident()

    # While it traces, torch.fx sends the calls and reads of all modules here, those of other threads too.

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        self.switched = self.switched or _seen_outside() != self.outside
        return super().create_node(*args, **kwargs)


def _seen_outside() -> tuple[Any, ...]:
    autocast = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _AUTOCAST]
    hooks = saved_tensors_hooks()  # checkpointing
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast, hooks


@contextmanager
def _surroundings(plain: bool) -> Iterator[None]:
    """Gradients on and autocast off, or the other way round, so that a part that switches to either is seen."""
    before = [torch.is_autocast_enabled(d) for d in _AUTOCAST]
    try:
        for device in _AUTOCAST:
            torch.set_autocast_enabled(device, not plain)
        with torch.set_grad_enabled(plain):
            yield
    finally:
        for device, enabled in zip(_AUTOCAST, before, strict=True):
            torch.set_autocast_enabled(device, enabled)


@contextmanager
def _random_numbers_kept() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether a global generator was drawn from; they are set back afterwards."""

    def states() -> tuple[Any, ...]:  # numpy's old generator is the one that models draw from
        return random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()  # noqa: NPY002

    before = states()
    try:
        yield lambda: pickle.dumps(states()) != pickle.dumps(before)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(torch.from_numpy(before[2]))


@contextmanager
def _recorded_reads(root: nn.Module) -> Iterator[dict[tuple[Path, str], Any]]:
    """Yields every attribute of root and its parts that is read meanwhile, by place, with its value at first.

    Modules and parameters lie elsewhere than in ``__dict__`` and are seen by torch.fx itself. The parts, a copy's, get
    classes of their own for that time: other modules, and other threads, notice nothing.
    """
    read: dict[tuple[Path, str], Any] = {}
    places = {id(part): path for path, part in places_of(root)}

    def look(module: Any, name: str) -> Any:
        value = super(type(module), module).__getattribute__(name)
        steers = name not in _OF_EVERY_MODULE and not name.startswith("__")
        if steers and id(module) in places and name in object.__getattribute__(module, "__dict__"):
            read.setdefault((places[id(module)], name), copy.copy(value))
        return value

    own = {part: type(part) for part in root.modules()}
    try:
        for part, kind in own.items():
            names = {"__getattribute__": look, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
            part.__class__ = cast("Any", type(kind))(kind.__name__, (kind,), names)
        yield read
    finally:
        for part, kind in own.items():
            part.__class__ = kind


def _can_be_compared(value: Any) -> bool:
    """Whether a copy of a value equals it, as numbers, words, their lists and functions do, and objects seldom."""
    try:
        return bool(copy.deepcopy(value) == value) and not isinstance(value, Tensor)
    except Exception:  # whatever somebody's object does when it is compared
        return False
