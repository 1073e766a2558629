"""Container of compressed images: a header of 43 bytes, then the words of the coder, group of images by group."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

MAGIC = b"gkc1"
HASH_BYTES = 16
MOST = (2**32 - 1, 2**16 - 1, 2**16 - 1, 2**16 - 1)  # images, colours, rows, columns

_HEADER = struct.Struct(f"<4s{HASH_BYTES}sIIHHHHHB")
_NUMBER = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _NUMBER.size  # its own checksum last


class CodingError(ValueError):
    """Images that cannot be compressed, or data that cannot be decompressed; the message says why."""


@dataclass(frozen=True)
class Header:
    """What the decoder has to know.

    Attributes:
        model: hash of the weights.
        checksum: CRC-32 of the images' levels, int32 [n, C, H, W].
        shape: (n, C, H, W).
        levels: of a sub-pixel.
        group: images that are coded together.
        native: whether the CPU's executor predicted, and not PyTorch's.
    """

    model: bytes
    checksum: int
    shape: tuple[int, int, int, int]
    levels: int
    group: int
    native: bool


def check_shape(shape: tuple[int, ...]) -> None:
    """Raise a CodingError unless a header can hold the shape of images [n, C, H, W]."""
    if any(number > most for number, most in zip(shape, MOST, strict=True)):
        raise CodingError(f"images: expected [n, C, H, W] up to {list(MOST)}; got {list(shape)}")


def pack(header: Header, words: list[np.ndarray]) -> bytes:
    fields = (header.model, header.checksum, *header.shape, header.levels - 1, header.group, header.native)
    head = _HEADER.pack(MAGIC, *fields)
    parts = [head, _NUMBER.pack(zlib.crc32(head))]
    for group in words:
        parts += [_NUMBER.pack(len(group)), group.astype("<u4").tobytes()]
    return b"".join(parts)


def unpack(data: bytes) -> tuple[Header, list[np.ndarray]]:
    """The header, and the words of each group.

    Raises:
        CodingError: the data are something else, or end early.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise CodingError("data: expected compressed images; got something else")
    if len(data) < _HEADER_BYTES:
        raise CodingError("data: they end within the header")
    if _NUMBER.unpack_from(data, _HEADER.size)[0] != zlib.crc32(data[: _HEADER.size]):
        raise CodingError("data: the header is damaged")
    _, model, checksum, n, colours, height, width, highest, group, native = _HEADER.unpack_from(data)
    header = Header(model, checksum, (n, colours, height, width), highest + 1, group, bool(native))
    words, at = [], _HEADER_BYTES
    for _ in range(-(-n // group)):
        if at + _NUMBER.size > len(data):
            raise CodingError("data: they end early")
        (count,) = _NUMBER.unpack_from(data, at)
        at += _NUMBER.size
        if at + 4 * count > len(data):
            raise CodingError("data: they end early")
        words.append(np.frombuffer(data, "<u4", count, at).astype(np.uint32))
        at += 4 * count
    if at != len(data):
        raise CodingError(f"data: {len(data) - at} bytes more than the images have")
    return header, words
