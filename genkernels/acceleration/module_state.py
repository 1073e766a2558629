"""The parts of a module by path, a copy of it, and whether a forward pass has changed anything in it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeAlias

from torch import Tensor, nn

Path: TypeAlias = tuple[str, ...]  # attributes from a module to a part or a tensor


def places_of(module: nn.Module) -> Iterator[tuple[Path, nn.Module]]:
    return ((tuple(name.split(".")) if name else (), part) for name, part in module.named_modules())


def copy_of(module: nn.Module) -> nn.Module:
    """A copy of a module, also of one that keeps the weight that it computed last, which deepcopy refuses."""
    memo = {}
    for part in module.modules():
        for value in part.__dict__.values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def state_of(root: nn.Module, parameters: bool = True) -> list[Any]:
    """What tells whether anything in a module has changed: identities, versions, the entries of lists."""
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
