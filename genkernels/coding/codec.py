"""Compression: the levels of a batch, place by place, by the probabilities that the model gives them.

The encoder has all predictions from one pass through the images, the decoder place by place from the same program
(``steps``): by one thread for a group of images both have the same bits, so that the coder's intervals agree. Groups
go to threads. What a machine with other vector instructions computes may differ in the last bit, and is then no
decoder; the checksum tells.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..distributions import Custom
from ..models import AutoregressiveModel
from ..sampling import FastSampler, Program, sampler_of
from ..sampling.executors import cpu
from ..sampling.executors.registry import teacher_forced, walk
from ..sampling.executors.stops import Stop
from ..sampling.request import check_levels, level_dtype
from .container import HASH_BYTES, CodingError, Header, check_shape, pack, unpack

MOST_IMAGES = 512  # of a group
MOST_BYTES = 1 << 28  # of an encoder's predictions for a group

OTHER = (
    "data: what comes out is not what was compressed: they are damaged, or this machine's processor computes "
    "other bits than the encoder's"
)

Progress = Callable[[int, int], None]


def compress(
    model: AutoregressiveModel | FastSampler, images: Tensor, condition: Any = None, progress: Progress | None = None
) -> bytes:
    """Levels as few bytes as the model's likelihood says, and some 50 more.

    Args:
        model: one of this package's, or a sampler for any other; it predicts the probabilities of levels: a softmax or
            a mixture of logistics.
        images: whole levels [n, C, H, W] in any real dtype, at least one image.
        condition: what the model takes besides, for all images at once; the decoder has to be given the same.
        progress: called as ``progress(done, total)`` with numbers of images.

    Raises:
        TypeError: the images are no tensor.
        CodingError: they do not fit the model, or it predicts no probabilities.
        ImportError: the package constriction is not installed.
    """
    sampler = _sampler(model)
    if isinstance(sampler.distribution, Custom):
        raise CodingError("model: expected one that predicts the probabilities of levels; its distribution is custom")
    if not isinstance(images, Tensor):
        raise TypeError(f"images: expected a Tensor; got {type(images).__name__}")
    if images.dim() != 4 or images.shape[1] != sampler.in_channels or not images.numel():
        raise CodingError(f"images: expected levels [n, {sampler.in_channels}, H, W]; got shape {list(images.shape)}")
    check_shape(images.shape)
    try:
        check_levels("images", images, sampler.levels)
    except ValueError as error:
        raise CodingError(str(error)) from error
    n, colours, height, width = images.shape
    numbers = sampler.distribution.channels * sampler.distribution.predictions * height * width
    group = max(1, min(MOST_IMAGES, MOST_BYTES // (4 * numbers)))
    levels = images.to("cpu", torch.int32).contiguous()
    program = sampler.compile(n, (height, width), condition)
    native = cpu.why_not(program) is None

    def encoded(first: int) -> np.ndarray:
        part = levels[first : first + group]
        own = program.for_images(first, first + len(part)) if condition is not None else program
        return _encode(own, part, native)

    header = Header(_hash(sampler.model), zlib.crc32(levels.numpy().tobytes()), (n, colours, height, width),
                    sampler.levels, group, native)  # fmt: skip
    return pack(header, list(_for_groups(encoded, n, group, native, progress)))


def decompress(
    model: AutoregressiveModel | FastSampler, data: bytes, condition: Any = None, progress: Progress | None = None
) -> Tensor:
    """The images that :func:`compress` was given: levels [n, C, H, W], uint8 where there are at most 256.

    Args:
        model, condition: as the encoder's.
        data: what it returned.
        progress: called as ``progress(done, total)`` with numbers of images.

    Raises:
        CodingError: the data are damaged, or of another model, or this machine computes other bits than the encoder's.
        ImportError: the package constriction is not installed.
    """
    sampler = _sampler(model)
    header, words = unpack(data)
    if header.model != _hash(sampler.model):
        raise CodingError("data: they were compressed by a model with other weights")
    n, colours, height, width = header.shape
    if (colours, header.levels) != (sampler.in_channels, sampler.levels):
        raise CodingError(
            f"data: they hold {colours} channels of {header.levels} levels; the model has {sampler.in_channels} of "
            f"{sampler.levels}"
        )
    program = sampler.compile(n, (height, width), condition)
    if header.native and (reason := cpu.why_not(program)) is not None:
        raise CodingError(f"data: they were compressed by the native executor, which cannot run here: {reason}")
    levels = torch.zeros(header.shape, dtype=torch.int32)

    def decoded(first: int) -> None:
        part = levels[first : first + header.group]
        own = program.for_images(first, first + len(part)) if condition is not None else program
        _decode(own, part, words[first // header.group], header.native)

    for _ in _for_groups(decoded, n, header.group, header.native, progress):
        pass
    if zlib.crc32(levels.numpy().tobytes()) != header.checksum:
        raise CodingError(OTHER)
    return levels.to(level_dtype(sampler.levels))


def _sampler(model: AutoregressiveModel | FastSampler) -> FastSampler:
    if isinstance(model, FastSampler):
        return model
    if not isinstance(model, AutoregressiveModel):
        raise CodingError(f"model: expected an AutoregressiveModel or a FastSampler; got {type(model).__name__}")
    return sampler_of(model)


def _hash(model: nn.Module) -> bytes:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()[:HASH_BYTES]


def _for_groups(
    work: Callable[[int], Any], n: int, group: int, native: bool, progress: Progress | None
) -> Iterator[Any]:
    """The work on each group, whose first image it is given; in threads, where the native executor does it."""
    threads = torch.get_num_threads() if native else 1
    with ThreadPoolExecutor(threads) as pool:
        for first, result in zip(range(0, n, group), pool.map(work, range(0, n, group)), strict=True):
            if progress is not None:
                progress(min(first + group, n), n)
            yield result


def _encode(program: Program, levels: Tensor, native: bool) -> np.ndarray:
    coder = _coder()
    encoder, family = coder.queue.RangeEncoder(), coder.model.Categorical(perfect=False)
    predicted = teacher_forced(program, levels, "cpu" if native else "torch", threads=1)
    _, colours, height, width = levels.shape
    distribution = program.distribution
    for row in range(height):
        for column in range(width):
            for colour in range(colours):
                own = predicted[:, :, distribution.prediction_of(colour), row, column].float().contiguous().cpu()
                here = levels[:, :, row, column]
                chances = distribution.probabilities(own, here[:, :colour])
                with _at(row, column, colour):
                    encoder.encode(here[:, colour].contiguous().numpy(), family, chances.numpy())
    return encoder.get_compressed()


def _decode(program: Program, levels: Tensor, words: np.ndarray, native: bool) -> None:
    coder = _coder()
    decoder, family = coder.queue.RangeDecoder(words), coder.model.Categorical(perfect=False)
    distribution = program.distribution
    known = torch.zeros(levels.shape, dtype=torch.bool)
    for stop in walk(program, levels, known, "cpu" if native else "torch"):
        for colour, own in _predictions(stop):
            chances = distribution.probabilities(own, levels[:, :colour, stop.row, stop.column])
            with _at(stop.row, stop.column, colour):
                decoded = decoder.decode(family, chances.numpy())
            levels[:, colour, stop.row, stop.column] = torch.from_numpy(decoded)


@contextmanager
def _at(row: int, column: int, colour: int) -> Iterator[None]:
    """Tells in our words what the coder cannot code there."""
    try:
        yield
    except ValueError as error:
        place = f"channel {colour} at row {row}, column {column}"
        raise CodingError(f"model: what it predicts for {place} is no distribution") from error
    except AssertionError as error:  # words that no encoder writes
        raise CodingError(OTHER) from error


def _predictions(stop: Stop) -> Iterator[tuple[int, Tensor]]:
    """The colours that are wanted at a place, and what each is drawn from."""
    parameters = torch.from_numpy(stop.parameters)
    if stop.colour is not None:
        yield stop.colour, parameters
        return
    for colour in range(parameters.shape[1]):
        yield colour, parameters[:, colour].contiguous()


def _coder() -> Any:
    import constriction

    return constriction.stream
