"""The commands compress and decompress: image files by a trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

from ..coding import CodingError, compress, decompress
from ..models import AutoregressiveModel
from ..train.atomic_write import write_atomically
from ..train.checkpoint import open_model
from ..train.data.image_file import header_of, read_pixels
from ..train.data.sources import dequantise, quantise
from ..train.errors import DataError, GenkernelsError, MissingPackageError
from .drawn import Destination, check_file
from .options import Checkpoint
from .progress import counted, make_console

IMAGES = "images"  # the title of what is written


def compress_images(
    checkpoint: Checkpoint,
    images: Annotated[list[Path], typer.Argument(help="Image files of one size, or one NAME.npy, uint8 [n, H, W, C].")],
    out: Annotated[Path, typer.Option(help="The compressed file.")],
) -> None:
    """Compress images without loss by an autoregressive model. The file is decompressed with the same model."""
    console, model = make_console(), _model(checkpoint)
    check_file(out)
    pixels = _read(images, model.in_channels)
    levels = quantise(pixels, model.levels)
    if not torch.equal(dequantise(levels, model.levels), pixels):
        raise GenkernelsError(
            f"images: they hold greys that are none of the model's {model.levels} levels, and would be lost; "
            "compress them with a model of 256 levels"
        )
    with _coding(console, "compressing") as step:
        data = compress(model, levels, progress=step)
    write_atomically(out, lambda file: file.write(data))
    bits = 8 * len(data) / levels.numel()
    console.print(f"{len(levels):,} images in {len(data):,} bytes, {bits:.4f} bits per sub-pixel; written to {out}")


def decompress_images(
    checkpoint: Checkpoint,
    file: Annotated[Path, typer.Argument(help="What compress wrote.")],
    out: Annotated[str, typer.Option(help="FOLDER/ for a file each; NAME.npy for uint8 [n, H, W, C].")],
) -> None:
    """Decompress images that compress wrote, with the same model."""
    console, model, destination = make_console(), _model(checkpoint), Destination(out)
    if not (destination.is_folder or destination.is_array):
        raise typer.BadParameter(f"--out: expected FOLDER/ or NAME.npy; got {out}")
    data = file.read_bytes()
    with _coding(console, "decompressing", str(file)) as step:
        levels = decompress(model, data, progress=step)
    destination.write({IMAGES: dequantise(levels, model.levels)}, IMAGES)
    console.print(f"{len(levels):,} images written to {out}")


@contextmanager
def _coding(console: Console, doing: str, data: str = "data") -> Iterator[Callable[[int, int], None]]:
    """A progress bar; what goes wrong is told of the ``data`` by their name."""
    try:
        with counted(console, doing) as step:
            yield step
    except ImportError as error:
        raise MissingPackageError("constriction", doing, extra="codec") from error
    except CodingError as error:
        text = str(error)
        raise GenkernelsError(data + text.removeprefix("data") if text.startswith("data:") else text) from error


def _model(checkpoint: Path) -> AutoregressiveModel:
    trained = open_model(checkpoint)
    if not isinstance(trained.model, AutoregressiveModel):
        raise GenkernelsError(f"{checkpoint}: only autoregressive models compress; not a {trained.recipe.name}")
    if trained.model.num_classes is not None:
        raise GenkernelsError(f"{checkpoint}: the model needs the class of each image, which image files do not have")
    return trained.model


def _read(files: list[Path], channels: int) -> Tensor:
    """The images of all files, uint8 [n, C, H, W].

    Raises:
        DataError: one cannot be read, they differ in size, or have other channels than the model.
    """
    if files[0].suffix.lower() == ".npy":
        if len(files) > 1:
            raise DataError(f"images: expected one .npy file, or image files; got {len(files)} files")
        try:
            array = np.load(files[0])
        except (ValueError, EOFError) as error:
            raise DataError(f"{files[0]}: no array of NumPy, or a damaged one") from error
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != channels:
            raise DataError(f"{files[0]}: expected uint8 [n, H, W, {channels}]; got {array.dtype} {list(array.shape)}")
        return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()
    images, first = [], header_of(files[0])[1]
    for file in files:
        grey, size = header_of(file)
        if size != first:
            raise DataError(
                f"{file}: expected {first[0]} x {first[1]} pixels as the first one; got {size[0]} x {size[1]}"
            )
        if grey != (channels == 1):
            raise DataError(f"{file}: expected {'greys' if channels == 1 else 'colours'}, as the model has them")
        images.append(read_pixels(file, grey, size))
    return torch.stack(images)
