"""Batches of training images: which images of an epoch come together, whole or in parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import processes
from .augmentation import Augmentation
from .file_images import DEFAULT_WORKERS, FileImages, Images, decoded_ahead
from .points import Mixture

UNCHANGED = Augmentation()


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images, and their labels where the model takes them.

    Attributes:
        images: uint8 [N, C, H, W], levels, in memory or in their files; or points, float32 [N, 2, 1, 1].
        labels: int64 [N], or None.
        mixture: what points were drawn from; None for images.
    """

    images: Images
    labels: Tensor | None = None
    mixture: Mixture | None = None

    def __len__(self) -> int:
        return len(self.images)

    def first(self, n: int) -> LabelledImages:
        images = self.images.first(n) if isinstance(self.images, FileImages) else self.images[:n]
        return LabelledImages(images, None if self.labels is None else self.labels[:n], self.mixture)


@dataclass(frozen=True, eq=False)
class Part(LabelledImages):
    """The images of a part of a batch that are this process'.

    Attributes:
        whole: images of the part in all processes.
        start: the place in the part of this process' first.
    """

    images: Tensor
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

    images: Tensor
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
        augmentation: what is done to the images of each batch.

    Attributes:
        workers: processes that decode images which are not in memory; 0 for none beside this one. Set before the first
            batch is asked for; :meth:`close` ends them.
    """

    def __init__(
        self,
        source: LabelledImages,
        batch_size: int,
        seed: int,
        micro_batches: int = 1,
        augmentation: Augmentation = UNCHANGED,
    ) -> None:
        self.source, self.micro_batches, self.augmentation = source, micro_batches, augmentation
        self.batch_size, self.seed = batch_size, seed
        self.workers = DEFAULT_WORKERS
        self._orders: dict[int, Tensor] = {}  # of the last epochs: workers are ahead, in the next one at times
        self._ahead: Generator[Tensor, None, None] | None = None
        self._next = (-1, -1)  # epoch and index of the batch that _ahead gives next

    def __len__(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self.source) / self.batch_size)

    def indices(self, epoch: int, index: int) -> Tensor:
        """Which images batch ``index`` of an epoch holds, int64 [batch_size] or fewer."""
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            newest = dict(list(self._orders.items())[-1:])
            self._orders = newest | {epoch: torch.randperm(len(self.source), generator=generator)}
        return self._orders[epoch][index * self.batch_size : (index + 1) * self.batch_size]

    def batch(self, epoch: int, index: int, device: torch.device) -> Batch:
        """Batch ``index`` of an epoch; what is random in it follows from the seed and its place alone.

        Raises:
            DataError: the file of one of its images is damaged.
        """
        chosen = self.indices(epoch, index)
        images = self._images(epoch, index)
        generator = torch.Generator().manual_seed(((self.seed * 1_000_003 + epoch) * 1_000_003 + index) % 2**63)
        images = self.augmentation(images, generator)
        labels = None if self.source.labels is None else self.source.labels[chosen].to(device)
        step = epoch * len(self) + index
        return Batch(images.to(device), labels, step=step, micro_batches=self.micro_batches)

    def _images(self, epoch: int, index: int) -> Tensor:
        """The images of a batch; in worker processes those of the batches behind it are begun."""
        source = self.source.images
        if not isinstance(source, FileImages) or self.workers == 0:
            return source[self.indices(epoch, index)]
        if self._ahead is None or self._next != (epoch, index):
            self.close()
            self._ahead = decoded_ahead(source, self._from(epoch, index), self.workers)
        self._next = (epoch, index + 1) if index + 1 < len(self) else (epoch + 1, 0)
        return next(self._ahead)

    def close(self) -> None:
        """End the worker processes, to be called in the end; they start again with the next batch."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _from(self, epoch: int, index: int) -> Iterator[Tensor]:
        """Which images the batches from this one on hold, without end."""
        while True:
            for later in range(index, len(self)):
                yield self.indices(epoch, later)
            epoch, index = epoch + 1, 0
