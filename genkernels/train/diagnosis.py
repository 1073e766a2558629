"""Diagnosis of a step whose numbers were not finite: the layer where they came up first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import processes
from .optimization import NotFiniteError


def first_layer_not_finite(model: nn.Module, step: Callable[[], Any]) -> str | None:
    """The name of the first layer whose output, in any process, is not finite when the step is taken again; or None.

    The gradients are then at fault: the name of the first parameter whose gradient is not finite, if there is one.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            tensors = output if isinstance(output, (tuple, list)) else (output,)
            if any(isinstance(t, Tensor) and t.is_floating_point() and not t.isfinite().all() for t in tensors):
                found.append(name)

        return look

    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        step()
    except NotFiniteError:
        pass  # as before
    finally:
        for hook in hooks:
            hook.remove()
    for first in processes.gather(found[0] if found else None):
        if first is not None:
            return first
    return next(
        (name for name, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()), None
    )
