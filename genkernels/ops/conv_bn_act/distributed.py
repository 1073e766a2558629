"""Batch statistics over the processes of a group: three numbers a channel are exchanged forward, two backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.torch_internals import process_group

NO_VARIANCE = "x: expected more than one value per channel when training; batch norm has no variance"


def group_name(sync: object) -> str:
    """The name of the process group that ``sync`` means, "" where there is nothing to exchange.

    Args:
        sync: False or None; True for the default group; or a ``torch.distributed`` process group.
    """
    if sync is None or sync is False:
        return ""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        if sync is True:
            return ""  # one process, as nn.SyncBatchNorm has it
        raise ValueError("sync: a process group needs torch.distributed, which is not initialised")
    group = torch.distributed.group.WORLD if sync is True else sync
    name = getattr(group, "group_name", None)
    if not isinstance(name, str):
        raise TypeError(f"sync: expected a bool or a process group; got {type(sync).__name__}")
    return name if torch.distributed.get_world_size(group) > 1 else ""  # type: ignore[arg-type]


def combine_statistics(mean: Tensor, deviations: Tensor, count: int, group: str) -> Tensor:
    """[3, C]: mean, biased variance and count of the joined batch, from each process' own (Chan et al. 1983).

    Raises:
        ValueError: the joined batch has one value; in every process.
    """
    counts = torch.full_like(mean, count)
    if group:
        own = torch.stack([mean, deviations, counts])
        parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(process_group(group)))]
        torch.distributed.all_gather(parts, own, group=process_group(group))
        means, squares, numbers = torch.stack(parts, 1)
        counts = numbers.sum(0)
        # Only where no process has more than one value do all of them have one: nobody else waits for a GPU here.
        if count <= 1 and counts[0].item() == 1:
            raise ValueError(NO_VARIANCE)
        total = counts.clamp(min=1)
        means = torch.where(numbers > 0, means, 0)
        mean = (means * numbers).sum(0) / total
        deviations = torch.where(numbers > 0, squares + (means - mean).square() * numbers, 0).sum(0)
    return torch.stack([mean, deviations / counts.clamp(min=1), counts])


def add_over_processes(sums: Tensor, group: str) -> Tensor:
    """The sum over all processes, in a tensor of its own."""
    if not group:
        return sums
    total = sums.clone()
    torch.distributed.all_reduce(total, group=process_group(group))
    return total
