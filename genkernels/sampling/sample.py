"""Sampling from a model by its program or, where it has none, by full forward passes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..distributions import Categorical, Distribution
from .compile import Predict, compile_program
from .executors.registry import execute
from .full_forward import full_forward_sample
from .predictor import Interface
from .request import Progress, Request
from .trace.graph import NotTraceable

FULL_FORWARD = "full_forward"

_lock = Lock()
_in_evaluation: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()
"""Modules that samplers have put into ``eval()``: by how many, and the mode they were in before."""


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """The model in ``eval()``, every module left in the mode it was in; threads that do so together leave it last."""
    modules = list(model.modules())
    with _lock:
        for module in modules:
            count, mode = _in_evaluation.get(module, (0, module.training))
            _in_evaluation[module] = (count + 1, mode)
        model.eval()
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                count, mode = _in_evaluation.pop(module)
                if count > 1:
                    _in_evaluation[module] = (count - 1, mode)
                else:
                    module.training = mode


@torch.no_grad()
def sample(
    model: nn.Module,
    predict: Predict,
    table: Tensor,
    request: Request,
    *,
    distribution: Distribution | None = None,
    condition: Any = None,
    interface: Interface = Interface(),  # noqa: B008  (it cannot be changed)
    progress: Progress | None = None,
    backend: str | None = None,
) -> Tensor:
    """Draws what is open in ``request.images``, in place, and returns them.

    The model's program draws them in the time of about one forward pass. A model that cannot be traced is sampled by
    full forward passes, with a warning that names the reason; with an explicit ``backend`` that is an error.

    Args:
        model, predict, table, condition, interface: see :func:`genkernels.sampling.compile_program`.
        request: what is to be drawn.
        distribution: what it is drawn from; None for the categorical one.
        progress: called as ``progress(done, total)``, in sub-pixels, after each row at least; where one CUDA launch
            draws everything, as soon as it is under way.
        backend: "torch", "cpu", ...: the executor; "full_forward": without a program; None: the quickest.
    """
    distribution = distribution or Categorical(len(table), request.images.shape[1])
    distribution.check_options(request.temperature, request.top_k)
    if not bool(request.free.any()):
        return request.images
    with in_evaluation(model):
        if backend != FULL_FORWARD:
            try:
                n, colours, height, width = request.images.shape
                shape = (n, colours, height, width)
                program = compile_program(model, predict, shape, table, condition, distribution, interface)
            except NotTraceable as reason:
                if backend is not None:
                    raise
                warnings.warn(
                    f"sampling {type(model).__name__} with a full forward pass for each sub-pixel, which is slow: "
                    f"{reason}",
                    stacklevel=4,
                )
            else:
                return execute(program, request, progress, backend)
        return full_forward_sample(
            lambda images: predict(interface.seen(images, table), condition), distribution, request, progress
        )
