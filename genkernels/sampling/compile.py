"""Compilation of a model to its program, which is kept for as long as it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..distributions import Categorical, Distribution
from ..ops.core.torch_internals import tree_flatten
from .predictor import Interface
from .program.program import Program
from .scheduling.fold import fold
from .scheduling.lower import lower
from .scheduling.schedule import schedule
from .trace import (  # noqa: F401  (they fill the table of operators)
    across,
    attention,
    conditions,
    functions,
    lookup,
    matrices,
    multihead,
    sequences,
)
from .trace.operators import OPERATORS
from .trace.tracer import trace

Predict = Callable[[Tensor, Any], Tensor]


@dataclass(eq=False)
class _Kept:
    """A program, and everything that it was made from: it holds for as long as that is the same."""

    structure: Any
    tensors: list[Tensor]
    program: Program


_lock = RLock()  # a model may sample from another one while it is traced
_kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def compile_program(
    model: nn.Module,
    predict: Predict,
    shape: tuple[int, int, int, int],
    table: Tensor,
    condition: Any = None,
    distribution: Distribution | None = None,
    interface: Interface = Interface(),  # noqa: B008  (it cannot be changed)
) -> Program:
    """The program that samples from a model with its present weights.

    Made anew when a weight, the condition, the size or a module has changed: compared by content, since not every
    change of a tensor leaves a trace. The model is taken as it is in ``eval()``, and must be in it.

    Args:
        model: the module with the weights.
        predict: (image as the model sees it [n, C, H, W], condition) -> logits [n, levels, C, H, W], or what
            else the distribution predicts.
        shape: (n, C, H, W); n matters with a condition alone.
        table: [levels], the image's values for each level, in the model's dtype and on its device.
        condition: passed on to predict.
        distribution: of the levels; None for the categorical one.
        interface: what ``predict`` takes; its layout is what ``predict`` has brought into the one above.

    Raises:
        NotTraceable: the model cannot be sampled this way; with the layer and the reason.
    """
    distribution = distribution or Categorical(len(table), shape[1])
    n = shape[0] if condition is not None else 2
    leaves, layout = tree_flatten(condition)
    others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    structure = ((n, *shape[1:]), distribution, interface, repr(model), str(layout), others)
    tensors = [*model.parameters(), *model.buffers(), *(leaf for leaf in leaves if isinstance(leaf, Tensor)), table]
    with _lock:
        kept = _kept.get(model)
        if kept is not None and kept.structure == structure and _equal(kept.tensors, tensors):
            return kept.program
        # In inference mode operators arrive before PyTorch has taken them apart, under autocast with casts.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(table.device.type, enabled=False):
            graph = trace(
                lambda x: predict(x, condition),
                model,
                shape=(n, *shape[1:]),
                distribution=distribution,
                dtype=table.dtype,
                image_dtype=torch.int64 if interface.index else table.dtype,
                device=table.device,
                operators=OPERATORS,
            )
            program = lower(schedule(fold(graph)), table)
        _kept[model] = _Kept(structure, [tensor.detach().clone() for tensor in tensors], program)
        return program


def _equal(old: list[Tensor], new: list[Tensor]) -> bool:
    return len(old) == len(new) and all(
        a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
        for a, b in zip(old, new, strict=True)
    )
