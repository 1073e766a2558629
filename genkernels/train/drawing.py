"""Many images of a trained model: drawn batch by batch, by all processes of a run in turn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..models import GenerativeModel
from . import processes
from .objectives import Drawing, Objective
from .objectives.base import Progress

BATCH = 256  # images at a time: what a model's features of them take stays small beside the images themselves


def draw(
    objective: Objective[Any],
    model: GenerativeModel,
    n: int,
    seed: int,
    *,
    progress: Progress | None = None,
    temperature: float | None = None,
    label: int | None = None,
) -> Tensor:
    """n images, or points, as :meth:`Objective.sample` gives them; the same for any number of processes.

    Args:
        objective: that of the model.
        model: on any device.
        n: how many, at least 1.
        seed: of all of them; each batch has random numbers of its own that follow from it.
        progress, temperature, label: see :class:`Drawing`.

    Raises:
        GenkernelsError: the family draws nothing, or takes no temperature or no label.
    """
    firsts = range(0, n, BATCH)
    seeds = torch.randint(2**31, (len(firsts),), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = {}
    for batch in range(processes.rank(), len(firsts), processes.count()):
        first = firsts[batch]
        size = min(BATCH, n - first)

        def report(done: int, total: int, first: int = first, size: int = size) -> None:
            assert progress is not None
            progress(first * total + size * done, n * total)

        generator = torch.Generator().manual_seed(seeds[batch])
        how = Drawing(generator, None if progress is None else report, temperature, label, first)
        drawn[batch] = objective.sample(model, size, how)
        if progress is not None:
            progress(first + size, n)
    everyones = {batch: images for one in processes.gather(drawn) for batch, images in one.items()}
    return torch.cat([everyones[batch] for batch in range(len(firsts))])
