"""One image file as 8-bit pixels, grey or in colour, the way a viewer shows it.

Turned as its EXIF orientation says; what is transparent lies on white; 16-bit greys are scaled (65535 becomes 255), and
so are floating-point greys from 0 to 1. Of an animation it is the first frame.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, MissingPackageError

if TYPE_CHECKING:
    from PIL import Image

_GREY_MODES = {"1", "L", "LA", "La", "I", "F"}
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF, and those that exchange height and width


def header_of(file: Path) -> tuple[bool, tuple[int, int]]:
    """Whether an image is grey, and its height and width as it is shown; read from the file's header.

    Raises:
        DataError: the file is no image.
        MissingPackageError: pillow is not installed.
    """
    with _open(file) as image:
        try:
            turned = _exif(file, image).get(_ORIENTATION) in _TURNED
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{file}: damaged image: {error}") from error
        size = (image.width, image.height) if turned else (image.height, image.width)
        return _is_grey(image), size


def read_pixels(file: Path, grey: bool, size: tuple[int, int]) -> Tensor:
    """uint8 [1 or 3, H, W], resized to ``size`` (height, width; the whole image, Lanczos) where it has another.

    Raises:
        DataError: the file is no image or damaged, or holds numbers that are no greys.
    """
    from PIL import Image, ImageOps

    height, width = size
    with _open(file) as image:
        try:
            pixels = ImageOps.exif_transpose(image)
            if pixels.mode in ("I", "F") or pixels.mode.startswith("I;16"):
                pixels = _to_8_bits(file, pixels)
            if pixels.has_transparency_data:
                pixels = pixels.convert("RGBA")
                pixels = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels)
            pixels = pixels.convert("L" if grey else "RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{file}: damaged image: {error}") from error
    if pixels.size != (width, height):
        pixels = pixels.resize((width, height), Image.Resampling.LANCZOS)
    flat = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
    return flat.view(height, width, 1 if grey else 3).permute(2, 0, 1).contiguous()


def _open(file: Path) -> Image.Image:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackageError("pillow", "the data set 'folder'") from error
    try:
        return Image.open(file)  # reads the header only
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: cannot be read as an image: {error}") from error


def _exif(file: Path, image: Image.Image) -> Image.Exif:
    """The EXIF data of an image; no pixels are decoded, unless it is a PNG with text or EXIF behind them."""
    from PIL import Image

    if image.format == "PNG" and not _has_text_behind_pixels(file):
        return Image.Image.getexif(image)  # that of a PNG decodes it, to come to what is behind the pixels
    return image.getexif()


def _has_text_behind_pixels(png: Path) -> bool:
    with open(png, "rb") as content:
        content.seek(8)
        after_pixels = False
        while len(head := content.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            after_pixels = after_pixels or kind == b"IDAT"
            if after_pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            content.seek(length + 4, os.SEEK_CUR)
    return False


def _is_grey(image: Image.Image) -> bool:
    return image.mode in _GREY_MODES or image.mode.startswith("I;16")


def _to_8_bits(file: Path, image: Image.Image) -> Image.Image:
    """Greys of 16 bits, or real ones from 0 to 1, scaled to 0 .. 255."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    most = 1.0 if image.mode == "F" else 65535.0
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= most):
        raise DataError(f"{file}: expected greys from 0 to {most:g}; got {low:g} to {high:g}")
    return Image.fromarray(np.rint(values * (255 / most)).astype(np.uint8))
