"""TensorBoard's copy of a run's history and pictures, in the folder ``tensorboard`` of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import MissingPackageError

FOLDER = "tensorboard"


class TensorBoard:
    """Writes events of a run.

    Args:
        folder: that of the run.
        step: steps that the run has done; what a part of it that was lost wrote of later ones is hidden.

    Raises:
        MissingPackageError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError("tensorboard", "--tensorboard", extra="tensorboard") from error
        self._writer = SummaryWriter(folder / FOLDER, purge_step=step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """The figures of a line of the history."""
        for key, value in record.items():
            if key not in ("step", "seconds", "binarize"):
                self._writer.add_scalar(key, value, record["step"])

    def show(self, name: str, picture: Path, step: int) -> None:
        """A picture that has been written."""
        from PIL import Image

        with Image.open(picture) as image:
            pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
            pixels = pixels.view(image.height, image.width, 3)
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()
