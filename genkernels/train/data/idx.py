"""The IDX format of MNIST and its relatives, plain or gzipped, with every kind of damage told apart.

Layout: two zero bytes, a type byte (8 = unsigned byte), the number of dimensions, each dimension as a big-endian 32-bit
number, then the data in C order (Y. LeCun, "The MNIST database of handwritten digits").
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError

_UNSIGNED_BYTE = 8


def read_idx(path: Path, dims: int) -> Tensor:
    """The uint8 tensor in an IDX file of ``dims`` dimensions (3 for images, 1 for labels).

    Raises:
        DataError: the file is missing, is not an IDX file of bytes, or is shorter or longer than its header says.
    """
    content = _read(path)
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(f"{path}: not an IDX file: expected it to begin with two zero bytes")
    kind, found_dims = content[2], content[3]
    if kind != _UNSIGNED_BYTE:
        raise DataError(f"{path}: expected unsigned bytes (IDX type 8); got IDX type {kind}")
    if found_dims != dims:
        raise DataError(f"{path}: expected {dims} dimensions; got {found_dims}")
    start = 4 + 4 * dims
    if len(content) < start:
        raise DataError(f"{path}: cut off inside its header")
    shape = struct.unpack(f">{dims}I", content[4:start])
    if math.prod(shape) != len(content) - start:
        raise DataError(
            f"{path}: expected {math.prod(shape)} bytes of data, as its header says "
            f"({' x '.join(map(str, shape))}); got {len(content) - start}"
        )
    if math.prod(shape) == 0:
        raise DataError(f"{path}: is empty: its header says {' x '.join(map(str, shape))}")
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(shape)


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:  # cut off, a wrong checksum, damaged inside
        raise DataError(f"{path}: damaged gzip file: {error}") from error
