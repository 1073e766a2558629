"""Drawn images as files: one picture of a grid, a folder of pictures, or an array of NumPy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from ..models import GenerativeModel
from ..train.atomic_write import write_atomically
from ..train.errors import GenkernelsError, MissingPackageError
from ..train.pictures import FORMATS, check_picture_path, save_grids


class Destination:
    """Where drawn images go, as ``--out`` says: NAME.png and the like for a grid, NAME.npy, or FOLDER/.

    To be made before any long work: what cannot be written is refused at once.

    Raises:
        GenkernelsError: the place cannot be written, or the folder holds something.
        MissingPackageError: the package that writes pictures is not installed.
    """

    def __init__(self, out: str) -> None:
        self.path = Path(out)
        self.is_folder = out.endswith(("/", os.sep)) or self.path.is_dir()
        self.is_array = self.path.suffix.lower() == ".npy" and not self.is_folder
        if self.is_folder:
            _check_folder(self.path)
        elif self.is_array:
            check_file(self.path)
        elif self.path.suffix.lower() in FORMATS:
            check_picture_path(self.path)
        else:
            raise GenkernelsError(
                f"{out}: expected a name that ends in {', '.join((*FORMATS, '.npy'))}, or a folder with / behind it"
            )

    def write(self, grids: Mapping[str, Tensor], drawn: str) -> None:
        """Write images uint8 [n, C, H, W], or points float32 [n, 2, 1, 1].

        A grid shows all of ``grids`` by their titles. An array or a folder holds those of the title ``drawn`` alone: an
        array as [n, H, W, C], points as [n, 2]; a folder as 0000.png, 0001.png ... in their order.
        """
        images = grids[drawn]
        if self.is_array:
            array = images.flatten(1) if images.is_floating_point() else images.permute(0, 2, 3, 1)
            write_atomically(self.path, lambda file: np.save(file, array.contiguous().numpy()))
        elif self.is_folder:
            _write_each(self.path, images)
        else:
            save_grids(self.path, grids, 256)


def check_file(path: Path) -> None:
    """Raise a GenkernelsError unless a file can be written there."""
    if path.is_dir():
        raise GenkernelsError(f"{path}: is a folder")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise GenkernelsError(f"{path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise GenkernelsError(f"{path}: cannot be written")


def refuse_single_points(destination: Destination, model: GenerativeModel) -> None:
    """Raise a GenkernelsError where the model draws points of the plane, and each is to be a picture."""
    if destination.is_folder and (model.in_channels, *model.image_size) == (2, 1, 1):
        raise GenkernelsError(
            f"{destination.path}: points are no pictures; name one of all, as points.png, or points.npy"
        )


def _check_folder(folder: Path) -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("pillow", "writing single pictures") from error
    existing = folder if folder.exists() else folder.absolute().parent
    if not existing.is_dir():
        raise GenkernelsError(f"{folder}: there is no folder {existing}")
    if existing == folder and any(folder.iterdir()):
        raise GenkernelsError(f"{folder}: expected a folder that is new or empty; it holds something")
    if not os.access(existing, os.W_OK):
        raise GenkernelsError(f"{folder}: cannot be written")


def _write_each(folder: Path, images: Tensor) -> None:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    digits = max(4, len(str(len(images) - 1)))
    for index, image in enumerate(images.permute(0, 2, 3, 1).contiguous().numpy()):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        picture.save(folder / f"{index:0{digits}}.png")
