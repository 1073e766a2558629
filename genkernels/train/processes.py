"""The processes of a run that torchrun started: what they exchange, and what the first of them does for all.

Every process has the whole model, draws the same random numbers, and takes its own rows of each batch
(:class:`genkernels.train.data.batches.Part`); the gradients are summed over the processes in
:meth:`genkernels.train.optimization.Descent.step`, and batch normalisation is over all of them. So a run is that of one
process, but for the order of its sums, and can be resumed with any number of processes.

DistributedDataParallel has no part in this: it averages what a call of the module's own forward leads to, but
objectives call other methods (``nats``, ``elbo_terms``, ``judge``), and those of a GAN use one half of it at a time.
Where the gradients meet their optimiser all objectives are alike.

Without torchrun there is one process, and nothing here does anything. Numbers travel over gloo, gradients on a GPU over
NCCL. What processes decide together must be the same in all: any of these calls waits for all of them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import GenkernelsError

T = TypeVar("T")


@contextmanager
def launched() -> Iterator[None]:
    """Inside, the processes of torchrun, if it started this one, are joined."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not {"RANK", "MASTER_ADDR"} <= os.environ.keys():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        # The traceback of an error may still hold the group, and one that outlives the interpreter aborts the process.
        gc.collect()
        torch.distributed.destroy_process_group()


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def count() -> int:
    return torch.distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """The number of this process; 0 is the first, which alone writes files and prints."""
    return torch.distributed.get_rank() if _joined() else 0


def local_rank() -> int:
    """The number of this process among those of its machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def add_gradients(gradients: Sequence[Tensor]) -> None:
    """Sum each over the processes, in place; one exchange for each dtype."""
    if count() == 1:
        return
    for dtype in {gradient.dtype: None for gradient in gradients}:
        chosen = [gradient for gradient in gradients if gradient.dtype == dtype]
        joined = torch.cat([gradient.flatten() for gradient in chosen])
        torch.distributed.all_reduce(joined)
        for gradient, total in zip(chosen, joined.split([g.numel() for g in chosen]), strict=True):
            gradient.copy_(total.view_as(gradient))


class _Sum(torch.autograd.Function):
    """The sum over the processes; of its gradients, too, since each process has a loss of its own."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        total = own.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


def mean_over_rows(rows: Tensor, whole: int) -> Tensor:
    """[N, ...] -> [...]: the mean over the ``whole`` rows of all processes; its gradient is exact in the sum."""
    if count() == 1 or len(rows) == whole:
        return rows.mean(0)
    return _Sum.apply(rows.sum(0)) / whole


def total(*values: float) -> list[float]:
    """The sum of each over the processes."""
    return _combined(values, "SUM")


def largest(*values: float) -> list[float]:
    """The largest of each over the processes."""
    return _combined(values, "MAX")


def _combined(values: Sequence[float], how: str) -> list[float]:
    if count() == 1:
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(numbers, getattr(torch.distributed.ReduceOp, how))
    return numbers.tolist()


def gather(value: T) -> list[T]:
    """That of each process, in all of them."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    torch.distributed.all_gather_object(values, value)
    return values


def together(work: Callable[[], T]) -> T:
    """What this process' work returns; an error that a user can mend, of any process, is raised in all of them."""
    result, error = _tried(work)
    if any(largest(error is not None)):  # one number at every step, and not the errors themselves
        raise next(found for found in gather(error) if found is not None)
    return result


def first_does(work: Callable[[], T]) -> T:
    """What the first process' work returns or raises, in all of them; the others wait."""
    if count() == 1:
        return work()
    outcome: list[Any] = list(_tried(work)) if rank() == 0 else [None, None]
    torch.distributed.broadcast_object_list(outcome)
    result, error = outcome
    if error is not None:
        raise error
    return result


def _tried(work: Callable[[], T]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except (GenkernelsError, OSError) as error:
        return None, error
