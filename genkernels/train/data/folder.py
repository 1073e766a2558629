"""A folder of image files: in memory, or where that would take too much, left in the files."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError
from . import file_images
from .file_images import FileImages, Images
from .image_file import header_of, read_pixels

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_TEST_FOLDERS = ("test", "val", "valid", "validation")
MOST_NAMED = 3  # broken files in a message

Split = tuple[Images, Images, Tensor | None, Tensor | None]


def read_folder(folder: Path, size: tuple[int, int] | None, *, skip_broken: bool = False) -> Split:
    """(train, test, train labels, test labels) from the images below a folder.

    With sub-folders ``train`` and ``test`` (or ``val``, ``valid``, ``validation``) these are the splits;
    otherwise every tenth image in the order of the paths is a test image. When every image lies in a sub-folder of its
    split, those sub-folders, sorted, are the labels; they may be links. Hidden files and folders (a dot in front, and
    ``__MACOSX``) are left out. Grey images give one channel, and three as soon as a single one of them is in colour;
    image_file.py says how they are read. The test images come in a random order, always the same one, so that the first
    few of them are of all classes.

    Images that would take more than 1 GiB of memory are decoded when they are used, see file_images.py: of these only
    the headers are read here, unless broken ones are to be left out, so that a damaged file shows when its turn comes.

    Args:
        folder: an existing folder.
        size: height and width to resize to (the whole image, Lanczos); None where all have one size.
        skip_broken: leave out files that cannot be read.

    Raises:
        DataError: no images, images of several sizes, files that are no image, a class that has no training image.
        MissingPackageError: pillow is not installed.
    """
    parts = _parts(folder)
    broken: dict[Path, str] = {}
    everything = [file for _, files in parts for file in files]
    grey, size = _common(everything, size, broken)
    readable = [file for file in everything if file not in broken]
    in_files = len(readable) * (1 if grey else 3) * size[0] * size[1] > file_images.LARGEST_IN_MEMORY
    pixels: dict[Path, Tensor] = {}
    if not in_files:
        pixels = _all_pixels(readable, grey, size, broken)
    elif skip_broken:
        _find_broken(readable, grey, size, broken)
    if broken and not skip_broken:
        named = "; ".join(list(broken.values())[:MOST_NAMED])
        if len(broken) == 1:
            raise DataError(f"{named} (--skip-broken leaves it out)")
        raise DataError(f"{len(broken):,} of {len(everything):,} files cannot be read (--skip-broken): {named}")
    parts = [(root, [file for file in files if file not in broken]) for root, files in parts]
    random.Random(0).shuffle(parts[1][1])
    for root, files in parts:
        if not files:
            raise DataError(f"{root}: no image of a split can be read")
    train, test = (
        FileImages(folder, tuple(files), grey, size) if in_files else torch.stack([pixels[file] for file in files])
        for _, files in parts
    )
    train_classes, test_classes = ([_class(root, file) for file in files] for root, files in parts)
    if "" in (*train_classes, *test_classes):
        return train, test, None, None
    classes = sorted(set(train_classes))
    unknown = sorted(set(test_classes) - set(classes))
    if unknown:
        raise DataError(f"{parts[1][0]}: no training image has the class of these folders: {', '.join(unknown)}")
    train_labels, test_labels = (
        torch.tensor([classes.index(name) for name in names]) for names in (train_classes, test_classes)
    )
    return train, test, train_labels, test_labels


def _parts(folder: Path) -> list[tuple[Path, list[Path]]]:
    """(root, files) of the training and of the test images."""
    held_out_folder = next((folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()), None)
    if (folder / "train").is_dir() and held_out_folder is not None:
        return [(root, _files(root)) for root in (folder / "train", held_out_folder)]
    files = _files(folder)
    if len(files) < 2:
        raise DataError(f"{folder}: expected at least 2 images, one to train and one to test on; got 1")
    held_out = set(files[9::10] or files[-1:])
    return [
        (folder, [f for f in files if f not in held_out]),
        (folder, [f for f in files if f in held_out]),
    ]


def _files(root: Path) -> list[Path]:
    """All images below a folder, through links too, but for hidden ones; sorted."""
    found: list[Path] = []
    above = {Path(root).resolve()}  # a link may lead back

    def walk(folder: Path, above: set[Path]) -> None:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            path = folder / entry.name
            if entry.is_dir():
                target = path.resolve()
                if target not in above:
                    walk(path, above | {target})
            elif path.suffix.lower() in _SUFFIXES and entry.is_file():
                found.append(path)

    walk(root, above)
    if not found:
        raise DataError(f"{root}: holds no images ({', '.join(sorted(_SUFFIXES))})")
    return sorted(found)


def _class(root: Path, file: Path) -> str:
    """The sub-folder of root that holds the file; "" for a file in root itself."""
    parts = file.relative_to(root).parts
    return parts[0] if len(parts) > 1 else ""


def _common(files: list[Path], size: tuple[int, int] | None, broken: dict[Path, str]) -> tuple[bool, tuple[int, int]]:
    """Whether all images are grey, and the size that they are to have; what cannot be read goes to ``broken``."""
    grey = True
    first: tuple[Path, tuple[int, int]] | None = None
    for file in files:
        try:
            is_grey, found = header_of(file)
        except DataError as error:
            broken[file] = str(error)
            continue
        grey = grey and is_grey
        first = first or (file, found)
        if size is None and found != first[1]:
            raise DataError(
                f"the images differ in size: {first[0]} is {first[1][0]} x {first[1][1]}, "
                f"{file} {found[0]} x {found[1]}; give a size to bring them to (--size)"
            )
    if first is None:
        raise DataError(next(iter(broken.values())))
    return grey, size or first[1]


def _all_pixels(files: list[Path], grey: bool, size: tuple[int, int], broken: dict[Path, str]) -> dict[Path, Tensor]:
    """The pixels of each file; what cannot be read goes to ``broken``."""
    pixels = {}
    for file in files:
        try:
            pixels[file] = read_pixels(file, grey, size)
        except DataError as error:
            broken[file] = str(error)
    return pixels


def _find_broken(files: Sequence[Path], grey: bool, size: tuple[int, int], broken: dict[Path, str]) -> None:
    """Decode each file once, and keep none; what cannot be read goes to ``broken``."""

    def what_is_wrong(file: Path) -> str | None:
        try:
            read_pixels(file, grey, size)
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:  # pillow decodes without Python's lock
        broken.update({file: wrong for file, wrong in zip(files, pool.map(what_is_wrong, files), strict=True) if wrong})
