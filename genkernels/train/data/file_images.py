"""Images that stay in their files: decoded when they are asked for, in worker processes while training."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .image_file import read_pixels

LARGEST_IN_MEMORY = 2**30  # bytes of all decoded images of a folder, above which they stay in their files
DEFAULT_WORKERS = min(4, os.cpu_count() or 1)
SECONDS_AFTER_SIGTERM = 60


@dataclass(frozen=True)
class FileImages:
    """Image files, used as a tensor uint8 [N, C, H, W] is: ``images[index]`` decodes those.

    Attributes:
        root: of the names of the files.
        files: below the root.
        grey: whether all are grey.
        size: height and width of a decoded image.
        steps: what is done to a decoded batch, one after the other: functions of a tensor, each image by itself, that
            another process can import.
    """

    root: Path
    files: tuple[Path, ...]
    grey: bool
    size: tuple[int, int]
    steps: tuple[Callable[[Tensor], Tensor], ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """One image [C, H, W], or those of a slice or of numbers int64 [n], [n, C, H, W].

        Raises:
            DataError: a file is damaged.
        """
        if isinstance(index, int):
            return self[index : index + 1 or None][0]
        chosen = self.files[index] if isinstance(index, slice) else [self.files[i] for i in index.tolist()]
        images = torch.empty(len(chosen), 1 if self.grey else 3, *self.size, dtype=torch.uint8)
        for place, file in zip(images, chosen, strict=True):
            place.copy_(read_pixels(file, self.grey, self.size))
        for step in self.steps:
            images = step(images)
        return images

    def map(self, step: Callable[[Tensor], Tensor]) -> FileImages:
        """The images with one more step.

        Raises:
            Whatever the step raises for an image of this size.
        """
        images = FileImages(self.root, self.files, self.grey, self.size, (*self.steps, step))
        assert images.shape[0] == len(self)
        return images

    def first(self, n: int) -> FileImages:
        return FileImages(self.root, self.files[:n], self.grey, self.size, self.steps)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, C, H, W] after all steps."""
        image = torch.zeros(1, 1 if self.grey else 3, *self.size, dtype=torch.uint8)
        for step in self.steps:
            image = step(image)
        _, channels, height, width = image.shape
        return len(self), channels, height, width

    @property
    def fingerprint(self) -> int:
        """A number that other files do not have: of their names, below the root, and of their lengths."""
        known = hashlib.sha256()
        for file in self.files:
            known.update(f"{file.relative_to(self.root)}\0{file.stat().st_size}\0".encode())
        return int.from_bytes(known.digest()[:6], "big")


Images: TypeAlias = Tensor | FileImages


def mapped(images: Images, step: Callable[[Tensor], Tensor]) -> Images:
    """The step taken: at once for images in memory, else for each batch that is decoded."""
    return images.map(step) if isinstance(images, FileImages) else step(images)


def fingerprint(images: Images) -> int:
    """A number that tells images from others: the sum of their levels, or that of their files."""
    return images.fingerprint if isinstance(images, FileImages) else int(images.sum(dtype=torch.float64))


def decoded_ahead(images: FileImages, places: Iterable[Tensor], workers: int) -> Generator[Tensor, None, None]:
    """Batches in the order of ``places``, numbers int64 [n] each, decoded by worker processes ahead of their use.

    ``places`` has no end; closing the generator ends the workers. No random number of the calling process is used up.

    Raises:
        DataError: a file is damaged, or a worker has ended.
    """
    loader = DataLoader(
        _Decoded(images), batch_size=None, sampler=places, num_workers=workers, worker_init_fn=_outlive_signals,
        generator=torch.Generator(),
    )  # fmt: skip
    batches = iter(loader)
    try:
        while True:
            batch = next(batches)
            if isinstance(batch, str):
                raise DataError(batch)
            yield batch
    except RuntimeError as error:  # a worker was killed, or is out of shared memory
        reason = str(error).splitlines()[0]
        raise DataError(f"workers: a process that decodes images has ended ({reason}); try --workers 0") from error
    finally:
        del batches  # ends the workers: the traceback of an error would keep this frame, and so them


class _Decoded(Dataset[Tensor]):
    """Batches for a worker. What is wrong comes as text: a DataLoader would add a traceback to an error's sentence."""

    def __init__(self, images: FileImages) -> None:
        self.images = images

    def __getitem__(self, index: object) -> Tensor:
        try:
            return self.images[cast(Tensor, index)]
        except DataError as error:
            return cast(Tensor, str(error))


def _outlive_signals(worker: int) -> None:
    """Ctrl-C and SIGTERM reach all processes of a terminal or a job, and the main one still ends its step.

    It ends the workers then; one that it has forgotten would keep it from exiting, and so ends by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_AFTER_SIGTERM))
