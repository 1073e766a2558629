"""A folder of image files as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import DataError, MissingPackageError

if TYPE_CHECKING:
    from PIL import Image

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_GREY_MODES = {"1", "L", "LA"}

Split = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def read_folder(folder: Path, size: tuple[int, int] | None) -> Split:
    """(train, test, train labels, test labels) from the images below a folder.

    With sub-folders ``train`` and ``test`` these are the splits; otherwise every tenth image in the order of
    the paths is a test image. When every image lies in a sub-folder of its split, those sub-folders, sorted,
    are the labels. Grey images give one channel, and three as soon as a single one of them is in colour.

    Args:
        folder: an existing folder.
        size: height and width to resize to (the whole image, Lanczos); None where all have one size.

    Raises:
        DataError: no images, images of several sizes, or a file that is no image.
        MissingPackageError: pillow is not installed.
    """
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        parts = [(root, _files(root)) for root in (folder / "train", folder / "test")]
    else:
        files = _files(folder)
        if len(files) < 2:
            raise DataError(f"{folder}: expected at least 2 images, one to train and one to test on; got 1")
        held_out = set(files[9::10] or files[-1:])
        parts = [
            (folder, [f for f in files if f not in held_out]),
            (folder, [f for f in files if f in held_out]),
        ]
    everything = [file for _, files in parts for file in files]
    mode, size = _common(everything, size)
    train, test = (torch.stack([_pixels(file, mode, size) for file in files]) for _, files in parts)
    classes = sorted({_class(root, file) for root, files in parts for file in files})
    if "" in classes:
        return train, test, None, None
    train_labels, test_labels = (
        torch.tensor([classes.index(_class(root, file)) for file in files]) for root, files in parts
    )
    return train, test, train_labels, test_labels


def _files(root: Path) -> list[Path]:
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"{root}: holds no images ({', '.join(sorted(_SUFFIXES))})")
    return files


def _class(root: Path, file: Path) -> str:
    """The sub-folder of root that holds the file; "" for a file in root itself."""
    parts = file.relative_to(root).parts
    return parts[0] if len(parts) > 1 else ""


def _open(file: Path) -> Image.Image:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackageError("pillow", "the data set 'folder'") from error
    try:
        return Image.open(file)  # reads the header only
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: cannot be read as an image: {error}") from error


def _common(files: list[Path], size: tuple[int, int] | None) -> tuple[str, tuple[int, int]]:
    """The mode ("L" or "RGB") and the size that all images are to have."""
    grey = True
    first: tuple[int, int] | None = None
    for file in files:
        with _open(file) as image:
            grey = grey and image.mode in _GREY_MODES
            found = (image.height, image.width)
        first = first or found
        if size is None and found != first:
            raise DataError(
                f"the images differ in size: {files[0]} is {first[0]} x {first[1]}, "
                f"{file} {found[0]} x {found[1]}; give a size to bring them to (--size)"
            )
    assert first is not None
    return "L" if grey else "RGB", size or first


def _pixels(file: Path, mode: str, size: tuple[int, int]) -> Tensor:
    """uint8 [C, H, W]."""
    height, width = size
    with _open(file) as image:
        try:
            pixels = image.convert(mode)
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{file}: damaged image: {error}") from error
    if pixels.size != (width, height):
        from PIL import Image

        pixels = pixels.resize((width, height), Image.Resampling.LANCZOS)
    flat = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
    return flat.view(height, width, len(mode)).permute(2, 0, 1).contiguous()
