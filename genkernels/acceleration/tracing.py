"""A module's forward pass as a graph, with its children as black boxes, and what has to stay for it to hold.

``torch.fx`` runs the forward once with a stand-in for the input and writes down the calls. What happens beside them is
not in the graph, so it is looked for: the pass runs on a copy, which must come out unchanged; random numbers must not
be drawn; gradients, autocast and checkpointing must not be switched for a part of it. Every attribute that the forward
reads on its way, its own or a child's, is remembered with its value.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.graph import Graph

from ..ops.core.torch_internals import saved_tensors_hooks
from .swap import original_forward

Path = tuple[str, ...]
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_OWN_NAMES = frozenset(nn.Module().__dict__)
_AUTOCAST = ("cpu", "cuda")


@dataclass(frozen=True)
class Watched:
    """What steered a traced pass.

    Attributes:
        attributes: (module, name, value) of what was read.
        children: (module, names) of the module itself and of the containers in it.
    """

    attributes: tuple[tuple[Path, str, Any], ...]
    children: tuple[tuple[Path, tuple[str, ...]], ...]

    def holds(self, module: Any) -> bool:
        for path, names in self.children:
            part = _part(module, path)
            if part is None or _names(part) != names:
                return False
        return all(getattr(_part(module, path), name, None) == value for path, name, value in self.attributes)


@dataclass(frozen=True)
class Trace:
    """The graph of a pass, how many arguments it takes, and what has to stay."""

    graph: Graph
    arguments: int
    watched: Watched


_ONE_AT_A_TIME = threading.RLock()  # torch.fx exchanges methods of nn.Module while it traces
_DRAWS = "its forward draws random numbers while it decides what to do"
_TRIALS = 3  # another thread may have drawn them


def trace(module: nn.Module) -> Trace | str:
    """The pass of a module, the same in training and evaluation; or why there is none."""
    with _ONE_AT_A_TIME:
        for _ in range(_TRIALS):
            found = _trace(module)
            if found != _DRAWS:
                break
        return found


def _trace(module: nn.Module) -> Trace | str:
    graphs: list[Graph] = []
    read: dict[tuple[Path, str], Any] = {}
    try:
        for other_mode in (True, False):
            twin = copy.deepcopy(original_forward(module))
            if other_mode:
                twin.train(not twin.training)
            with _random_numbers_kept() as drawn, _recorded_reads(twin, read), _surroundings(plain=other_mode):
                tracer = _Tracer()
                before = state_of(twin)
                graphs.append(tracer.trace(twin))
                changed = state_of(twin) != before
            for happened, what in (
                (changed, "changes its attributes"),
                (tracer.switched, "switches gradients, autocast or checkpointing for a part of it"),
            ):
                if happened:
                    return f"its forward {what}"
            if drawn:
                return _DRAWS
    except Exception as error:  # whatever a stranger's forward does with a stand-in
        text = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        return f"torch.fx cannot follow its forward: {text}"
    if str(graphs[0]) != str(graphs[1]):
        return "its forward does other things in training than in evaluation"
    for node in graphs[0].nodes:
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            return "its forward makes tensors that do not depend on its input"
    for (path, name), value in read.items():
        if not _can_be_compared(value):
            return f"its forward reads {'.'.join((*path, name))}, whose changes would go unnoticed"
    arguments = sum(node.op == "placeholder" for node in graphs[0].nodes)
    values = tuple((path, name, copy.deepcopy(value)) for (path, name), value in read.items())
    return Trace(graphs[0], arguments, Watched(values, tuple(_children(module))))


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
    """Gradients on and autocast off, or the other way round, so that a part that wants either one is seen."""
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
def _random_numbers_kept() -> Iterator[list[str]]:
    """Yields a list that names the generators that were drawn from; they are as they were afterwards."""
    drawn: list[str] = []
    python, own = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002 - it is the old one that strangers draw from
    try:
        yield drawn
    finally:
        if random.getstate() != python:
            drawn.append("random")
        if any(not np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy, strict=True)):  # noqa: NPY002
            drawn.append("numpy")
        if not torch.equal(torch.get_rng_state(), own):
            drawn.append("torch")
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(own)


@contextmanager
def _recorded_reads(root: nn.Module, read: dict[tuple[Path, str], Any]) -> Iterator[None]:
    """Every attribute of root and its parts that is read meanwhile, by place, with its value at first.

    Modules and parameters lie elsewhere than in ``__dict__`` and are seen by torch.fx itself. The parts, a copy's, get
    classes of their own for that time: other modules, and other threads, notice nothing.
    """
    places = {id(part): tuple(name.split(".")) if name else () for name, part in root.named_modules()}

    def look(module: Any, name: str) -> Any:
        value = super(object.__getattribute__(module, "__class__"), module).__getattribute__(name)
        if name not in _OWN_NAMES and not name.startswith("__") and id(module) in places:
            own = object.__getattribute__(module, "__dict__")
            if name in own and not name.startswith("_genkernels_"):
                read.setdefault((places[id(module)], name), copy.copy(value))
        return value

    own = {part: type(part) for part in root.modules()}
    try:
        for part, kind in own.items():
            seen = {"__getattribute__": look, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
            made: Any = type(kind)
            part.__class__ = made(kind.__name__, (kind,), seen)
        yield
    finally:
        for part, kind in own.items():
            part.__class__ = kind


def state_of(root: nn.Module, parameters: bool = True) -> list[Any]:
    """By which is seen whether anything in a module has changed: identities, versions, the entries of lists."""
    found: list[Any] = []
    for part in root.modules():
        for name, value in part.__dict__.items():
            if name == "_parameters" and not parameters:
                continue
            whole = value if name in ("_buffers", "_parameters", "_modules") else {name: value}
            for inner, each in whole.items():
                version = each._version if isinstance(each, Tensor) and not each.is_inference() else 0
                found.append((name, inner, id(each), version))
                if isinstance(each, (list, dict, set)):
                    entries = [*each, *each.values()] if isinstance(each, dict) else each
                    found.append([id(entry) for entry in entries])
    return found


def _can_be_compared(value: Any) -> bool:
    """Whether a copy of a value equals it, as numbers, words, their lists and functions do, and objects seldom."""
    try:
        return bool(copy.deepcopy(value) == value) and not isinstance(value, Tensor)
    except Exception:  # whatever a stranger's object does when it is compared
        return False


def _children(module: nn.Module) -> Iterator[tuple[Path, tuple[str, ...]]]:
    yield (), _names(module)
    for name, part in module.named_modules():
        if name and isinstance(part, _CONTAINERS):
            yield tuple(name.split(".")), _names(part)


def _names(module: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, child in module._modules.items() if child is not None)


def _part(module: Any, path: Path) -> Any:
    for name in path:
        module = None if module is None else module._modules.get(name)
    return module
