"""CIFAR-10 from its files: the binary version, or the Python version that torchvision downloads."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

_RECORD = 1 + 3 * 32 * 32
_FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
_BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


def read_cifar10(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(train, test, train labels, test labels): uint8 [N, 3, 32, 32] and int64 [N].

    Raises:
        DataError: a file is missing or damaged.
    """
    folder = next((folder / inner for inner in _FOLDERS if (folder / inner).is_dir()), folder)
    pickled = not (folder / "data_batch_1.bin").is_file() and (folder / "data_batch_1").is_file()
    parts = [_read_pickled(folder / name) if pickled else _read_binary(folder / f"{name}.bin") for name in _BATCHES]
    test, test_labels = _read_pickled(folder / "test_batch") if pickled else _read_binary(folder / "test_batch.bin")
    return torch.cat([images for images, _ in parts]), test, torch.cat([labels for _, labels in parts]), test_labels


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(f"cifar10: there is no {path.name} in {path.parent}")
    return path.read_bytes()


def _read_binary(path: Path) -> tuple[Tensor, Tensor]:
    content = _content(path)
    if not content or len(content) % _RECORD:
        raise DataError(f"{path}: expected whole records of {_RECORD} bytes; got {len(content)} bytes")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, _RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), _checked(path, records[:, 0].long())


_KNOWN = {
    ("__builtin__", "bytes"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
}


class _Unpickler(pickle.Unpickler):
    """Knows the names that an array of bytes is made of, and no others: nothing in the file can run code."""

    def find_class(self, module: str, name: str) -> Any:
        place = module.replace("numpy.core.", "numpy._core.")  # its name before NumPy 2
        if (place, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return bytes if name == "bytes" else super().find_class(place, name)


def _read_pickled(path: Path) -> tuple[Tensor, Tensor]:
    content = _content(path)
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        pixels, labels = batch[b"data"], batch[b"labels"]
        images = torch.from_numpy(np.ascontiguousarray(pixels)).view(-1, 3, 32, 32)
        if images.dtype != torch.uint8 or len(images) != len(labels) or not len(labels):
            raise ValueError(f"{len(labels)} labels for {list(images.shape)} of {images.dtype}")
        return images, _checked(path, torch.tensor(labels))
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise DataError(f"{path}: not a batch of CIFAR-10's Python version ({error})") from error


def _checked(path: Path, labels: Tensor) -> Tensor:
    if labels.min() < 0 or labels.max() > 9:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{path}: expected labels 0 .. 9; got {int(wrong)}")
    return labels
