"""Data sets by name: real images from standard files, as uint8 tensors where they are not too large for memory.

A specification is one of these words, with a path where it takes one:

    digits               the 1,797 handwritten 8 x 8 digits that scikit-learn carries (17 grey levels)
    mnist:PATH           the four IDX files, gzipped or not
    fashion-mnist[:PATH] the same format; without a path, where Debian's package dataset-fashion-mnist puts it
    cifar10:PATH         the binary version (data_batch_1.bin ...) or the Python version (data_batch_1 ...)
    ring, grid           points of the plane, see points.py
    folder:PATH          any images, in PATH/train and PATH/test (or val) or all together
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError, MissingPackageError
from .binarise import read_fixed
from .cifar import read_cifar10
from .file_images import Images, mapped
from .folder import read_folder
from .idx import read_idx
from .points import MIXTURES, TEST_POINTS, TRAIN_POINTS, Mixture

SPECS = ("digits", "mnist:PATH", "fashion-mnist[:PATH]", "cifar10:PATH", "folder:PATH", "ring", "grid")

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Dataset:
    """Images of one size, split in two; training images that are to be cut, in :class:`Augmentation`, may be larger.

    Attributes:
        name: the first word of the specification.
        train, test: uint8 [N, C, H, W], 0 .. 255, in memory or in their files; or points, float32 [N, 2, 1, 1].
        train_labels, test_labels: int64 [N], or None where the files hold none.
        levels: how many of the 256 values occur: what :func:`quantise` reduces to without loss.
        mixture: what points were drawn from; None for images.
    """

    name: str
    train: Images
    test: Images
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    levels: int = 256
    mixture: Mixture | None = None


def open_dataset(
    spec: str,
    size: tuple[int, int] | None = None,
    *,
    crop: int | None = None,
    grey: bool = False,
    fixed: bool = False,
    skip_broken: bool = False,
) -> Dataset:
    """Open a data set, "NAME" or "NAME:PATH" (see the top of this module).

    Args:
        spec: which.
        size: height and width to which images are resized, after the crop; None where they have one size.
        crop: side of the square that is cut from each image: from the middle of test images; training images stay
            whole, and of their former size, since :class:`Augmentation` cuts them anew in each epoch.
        grey: make colours one grey channel (ITU-R BT.601).
        fixed: take the fixed binarised files of MNIST, see binarise.py.
        skip_broken: leave out files of a folder that cannot be read.

    Raises:
        DataError: an unknown name, a missing or damaged file, or an option that does not fit; the message is one
            sentence.
        MissingPackageError: scikit-learn (digits) or pillow (folder) is not installed.
    """
    name, _, path = spec.partition(":")
    if fixed and name != "mnist":
        raise DataError(f"binarize: 'fixed' is a version of mnist:PATH; got {spec!r}")
    place = Path(path).expanduser() if path else None
    if name in MIXTURES:
        for option, value in (("size", size), ("crop", crop), ("grey", grey or None)):
            if value is not None:
                raise DataError(f"{option}: {name} holds points, not images; got {value}")
    dataset = _open(name, spec, place, size if crop is None else None, fixed, skip_broken)
    for images in (dataset.train, dataset.test):
        height, width = images.shape[2:]
        if crop is not None and not 1 <= crop <= min(height, width):
            raise DataError(f"crop: expected a side of 1 .. {min(height, width)}, of {height} x {width}; got {crop}")
    whole = partial(_prepared, size=size if crop is None else None, crop=None, grey=grey)
    test = mapped(dataset.test, partial(_prepared, size=size, crop=crop, grey=grey))
    return replace(dataset, train=mapped(dataset.train, whole), test=test)


def _open(
    name: str, spec: str, place: Path | None, size: tuple[int, int] | None, fixed: bool, skip_broken: bool
) -> Dataset:
    if name == "digits" or name in MIXTURES:
        if place is not None:
            raise DataError(f"{name}: takes no path; got {str(place)!r}")
        return _digits() if name == "digits" else _points(name)
    if name == "fashion-mnist":
        return _mnist(name, place or DEBIAN_FASHION_MNIST)
    if name not in ("mnist", "cifar10", "folder"):
        guess = f"; did you mean folder:{spec} or mnist:{spec}?" if Path(spec).expanduser().exists() else ""
        raise DataError(f"unknown data set {spec!r}; expected one of: {', '.join(SPECS)}{guess}")
    if place is None:
        raise DataError(f"{name}: expected a path, as in {name}:PATH")
    if not place.is_dir():
        raise DataError(f"{name}: there is no folder {place}")
    if name == "mnist":
        return Dataset("mnist", *read_fixed(place), levels=2) if fixed else _mnist(name, place)
    return Dataset(
        name, *(read_cifar10(place) if name == "cifar10" else read_folder(place, size, skip_broken=skip_broken))
    )


def _prepared(images: Tensor, size: tuple[int, int] | None, crop: int | None, grey: bool) -> Tensor:
    """Images cut, resized and made grey, as far as they are not so already."""
    height, width = images.shape[2:]
    if crop is not None:
        top, left = (height - crop) // 2, (width - crop) // 2
        images = images[:, :, top : top + crop, left : left + crop]
    if grey and images.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        images = torch.cat(
            [(part.float() * weights).sum(1, keepdim=True).round().byte() for part in images.split(4096)]
        )
    if size is not None:
        images = torch.cat([resized(part, size) for part in images.split(4096)])
    return images.contiguous()


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [N, C, H, W] to height and width ``size`` (bicubic, smoothed where it shrinks them)."""
    if tuple(images.shape[2:]) == size:
        return images
    smooth = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
    return smooth.round().clamp(0, 255).to(torch.uint8)


def in_levels(images: Images, levels: int) -> Images:
    """:func:`quantise` of images in memory or in their files."""
    return mapped(images, partial(quantise, levels=levels))


def quantise(images: Tensor, levels: int) -> Tensor:
    """uint8 0 .. 255 to uint8 levels 0 .. levels - 1, in equal bins: ``floor(value * levels / 256)``.

    2 levels are the usual binarisation: above 127 is 1. Any shape; ``levels`` 2 to 256. Points stay as they are.
    """
    if levels == 256 or images.is_floating_point():
        return images
    table = torch.arange(256) * levels // 256
    return table.to(torch.uint8)[images.int()]


def dequantise(images: Tensor, levels: int) -> Tensor:
    """Levels 0 .. levels - 1 to uint8 0 .. 255, for pictures. Any shape."""
    return (images.float() * (255 / (levels - 1))).round().to(torch.uint8)


def as_picture(images: Tensor) -> Tensor:
    """Real numbers 0 .. 1, on any device, to uint8 0 .. 255 on the CPU. Any shape; what lies outside is clipped."""
    return (images.cpu().float() * 255).round().clamp(0, 255).to(torch.uint8)


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPackageError("scikit-learn", "the data set 'digits'") from error
    source = load_digits()
    images = torch.from_numpy(source.images)[:, None]  # float64 [1797, 1, 8, 8], 0 .. 16
    images = (images * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(source.target).long()
    held_out = torch.arange(len(images)) % 6 == 5
    return Dataset("digits", images[~held_out], images[held_out], labels[~held_out], labels[held_out], levels=17)


def _points(name: str) -> Dataset:
    mixture, generator = MIXTURES[name], torch.Generator().manual_seed(0)
    (train, train_modes), (test, test_modes) = (mixture.draw(n, generator) for n in (TRAIN_POINTS, TEST_POINTS))
    return Dataset(name, train, test, train_modes, test_modes, mixture=mixture)


def _mnist(name: str, folder: Path) -> Dataset:
    train, train_labels = _idx_split(name, folder, "train")
    test, test_labels = _idx_split(name, folder, "t10k")
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"{folder}: the training images are {_size(train)}, the test images {_size(test)}")
    return Dataset(name, train, test, train_labels, test_labels)


def _idx_split(name: str, folder: Path, split: str) -> tuple[Tensor, Tensor]:
    image_file = _find(name, folder, f"{split}-images", "idx3-ubyte")
    label_file = _find(name, folder, f"{split}-labels", "idx1-ubyte")
    images, labels = read_idx(image_file, 3)[:, None], read_idx(label_file, 1).long()
    if len(images) != len(labels):
        raise DataError(f"{image_file} holds {len(images)} images, but {label_file} {len(labels)} labels")
    return images, labels


def _find(name: str, folder: Path, stem: str, kind: str) -> Path:
    """The file under one of the names and places that are in use (torchvision: MNIST/raw)."""
    for place in (folder, folder / "MNIST" / "raw", folder / "FashionMNIST" / "raw"):
        for file in (f"{stem}-{kind}", f"{stem}.{kind}"):
            for suffix in ("", ".gz"):
                if (place / (file + suffix)).is_file():
                    return place / (file + suffix)
    hint = f"; install the package dataset-fashion-mnist or give {name}:PATH" if folder == DEBIAN_FASHION_MNIST else ""
    raise DataError(f"{name}: there is no {stem}-{kind} (nor {stem}-{kind}.gz) in {folder}{hint}")


def _size(images: Tensor | Sequence[int]) -> str:
    shape = images.shape if isinstance(images, Tensor) else images
    return f"{shape[-2]} x {shape[-1]}"
