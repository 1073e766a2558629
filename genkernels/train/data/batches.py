"""Batches of training images: which images of an epoch come together, whole or in parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import processes
from .binarise import stochastic
from .points import Mixture


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images, and their labels where the model takes them.

    Attributes:
        images: uint8 [N, C, H, W], levels; or points, float32 [N, 2, 1, 1].
        labels: int64 [N], or None.
        mixture: what points were drawn from; None for images.
    """

    images: Tensor
    labels: Tensor | None = None
    mixture: Mixture | None = None

    def __len__(self) -> int:
        return len(self.images)

    def first(self, n: int) -> LabelledImages:
        return LabelledImages(self.images[:n], None if self.labels is None else self.labels[:n], self.mixture)


@dataclass(frozen=True, eq=False)
class Part(LabelledImages):
    """The images of a part of a batch that are this process'.

    Attributes:
        whole: images of the part in all processes.
        start: the place in the part of this process' first.
    """

    whole: int = 0
    start: int = 0

    def own(self, rows: Tensor) -> Tensor:
        """Of rows for the whole part those for this process' images."""
        return rows[self.start : self.start + len(self)]

    def drawn(self, draw: Callable[[int], Tensor]) -> Tensor:
        """Random numbers ``draw(n)``, [n, ...]: drawn for the whole part, so that processes share one run of them."""
        return self.own(draw(self.whole))

    def mean(self, rows: Tensor) -> Tensor:
        """The mean of rows [N, ...] for this process' images over the whole part, [...]."""
        return processes.mean_over_rows(rows, self.whole)


@dataclass(frozen=True, eq=False)
class Batch(LabelledImages):
    """Those of one step, in all processes, on the device of the model.

    Attributes:
        step: steps of the run before this one.
        micro_batches: in how many parts a step computes its gradient, to hold the features of one part at a time.
    """

    step: int = 0
    micro_batches: int = 1

    def parts(self) -> Iterator[tuple[Part, float]]:
        """This process' images of each part, and what a mean over them weighs in the sum over parts and processes.

        A part of fewer images than processes is done whole by each.
        """
        count, rank = processes.count(), processes.rank()
        images = self.images.tensor_split(min(self.micro_batches, len(self)))
        labels = [None] * len(images) if self.labels is None else self.labels.tensor_split(len(images))
        for part, classes in zip(images, labels, strict=True):
            whole = len(part)
            split = whole >= count
            start, end = (whole * rank // count, whole * (rank + 1) // count) if split else (0, whole)
            weight = (end - start if split else whole / count) / len(self)
            own = None if classes is None else classes[start:end]
            yield Part(part[start:end], own, whole=whole, start=start), weight


class Batches:
    """Epochs of batches; the last one of an epoch may be smaller.

    The order of an epoch follows from the seed and the epoch alone, so that a run can go on anywhere.

    Args:
        source: on the CPU.
        batch_size: images per step.
        seed: of the order.
        micro_batches: see :class:`Batch`.
        resample: the source holds grey images, 0 .. 255, that are stochastically binarised for each batch.
        flip: turn each image left to right with probability 1/2.
    """

    def __init__(
        self,
        source: LabelledImages,
        batch_size: int,
        seed: int,
        micro_batches: int = 1,
        *,
        resample: bool = False,
        flip: bool = False,
    ) -> None:
        self.source, self.micro_batches, self.resample, self.flip = source, micro_batches, resample, flip
        self.batch_size, self.seed = batch_size, seed
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self.source) / self.batch_size)

    def indices(self, epoch: int, index: int) -> Tensor:
        """Which images batch ``index`` of an epoch holds, int64 [batch_size] or fewer."""
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = (epoch, torch.randperm(len(self.source), generator=generator))
        return self._order[1][index * self.batch_size : (index + 1) * self.batch_size]

    def batch(self, epoch: int, index: int, device: torch.device) -> Batch:
        """Batch ``index`` of an epoch; what is random in it follows from the seed and its place alone."""
        chosen = self.indices(epoch, index)
        images = self.source.images[chosen]
        generator = torch.Generator().manual_seed(((self.seed * 1_000_003 + epoch) * 1_000_003 + index) % 2**63)
        if self.flip:
            turned = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(turned[:, None, None, None], images.flip(3), images)
        if self.resample:
            images = stochastic(images, generator)
        labels = None if self.source.labels is None else self.source.labels[chosen].to(device)
        step = epoch * len(self) + index
        return Batch(images.to(device), labels, step=step, micro_batches=self.micro_batches)
