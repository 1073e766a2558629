"""Checked arguments of a call that samples, with the same messages for every sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import check_whole
from ..ops.core.torch_internals import unwrapped

Progress = Callable[[int, int], None]


@dataclass(eq=False)
class Request:
    """Images to draw.

    Attributes:
        images: :func:`level_dtype` [n, C, H, W] on the model's device, known levels in place and 0 elsewhere.
        free: bool [n, C, H, W], what is to be drawn.
        uniforms: [n, C, H, W] in [0, 1).
        temperature, top_k: see :func:`genkernels.distributions.Distribution.draw`.
    """

    images: Tensor
    free: Tensor
    uniforms: Tensor
    temperature: float
    top_k: int | None


MAX_LEVELS = 65536


def level_dtype(levels: int) -> torch.dtype:
    """The smallest dtype of samples that PyTorch computes with and that holds levels 0 .. levels - 1."""
    return torch.uint8 if levels <= 256 else torch.int16 if levels <= 32768 else torch.int32


def check_request(
    shape: tuple[int, int, int, int],
    levels: int,
    device: torch.device,
    *,
    uniforms: Tensor | None,
    given: Tensor | None,
    known: Tensor | None,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator | None,
) -> Request:
    """The request, or a ValueError that names the argument that does not fit."""
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0; got {temperature!r}")
    if top_k is not None:
        check_whole("top_k", top_k, 1)
    images, free = _start(shape, levels, given, known, device)
    return Request(images, free, _uniforms(shape, uniforms, generator).to(device), temperature, top_k)


def _start(
    shape: tuple[int, int, int, int], levels: int, given: Tensor | None, known: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The images before anything is drawn (0 where unknown), and what is to be drawn."""
    images = torch.zeros(shape, dtype=level_dtype(levels), device=device)
    if given is None and known is None:
        return images, torch.ones(shape, dtype=torch.bool, device=device)
    if given is None or known is None:
        raise ValueError("given, known: expected both or neither; got " + ("known" if given is None else "given"))
    n, colours, height, width = shape
    if known.dtype != torch.bool:
        raise ValueError(f"known: expected dtype bool; got {known.dtype}")
    if known.dim() != 4 or not _fits(known.shape, shape):
        raise ValueError(f"known: expected [{n} or 1, {colours} or 1, {height}, {width}]; got {list(known.shape)}")
    if given.dim() != 4 or given.shape[0] not in (1, n) or given.shape[1:] != shape[1:]:
        raise ValueError(f"given: expected [{n} or 1, {colours}, {height}, {width}]; got {list(given.shape)}")
    known, given = known.to(device).expand(shape), given.to(device).expand(shape)
    check_levels("given", given[known], levels)
    images[known] = given[known].to(images.dtype)
    return images, ~known


def _fits(part: Sequence[int], shape: tuple[int, int, int, int]) -> bool:
    return part[0] in (1, shape[0]) and part[1] in (1, shape[1]) and tuple(part[2:]) == shape[2:]


def _uniforms(shape: tuple[int, ...], uniforms: Tensor | None, generator: torch.Generator | None) -> Tensor:
    if uniforms is None:
        return torch.rand(shape, generator=generator)  # on the CPU: a seed means the same on every device
    if tuple(uniforms.shape) != shape or not uniforms.dtype.is_floating_point:
        raise ValueError(
            f"uniforms: expected floating-point {list(shape)}; got {uniforms.dtype} {list(uniforms.shape)}"
        )
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        raise ValueError(
            f"uniforms: expected numbers in [0, 1); got {uniforms.min().item():g} .. {uniforms.max().item():g}"
        )
    return uniforms


def check_levels(name: str, x: Tensor, levels: int) -> None:
    """Raise a ValueError unless x holds whole numbers in 0 .. levels - 1 (not looked for inside ``torch.compile``)."""
    if x.numel() == 0 or (x.dtype == torch.uint8 and levels == 256) or torch.compiler.is_compiling():
        return
    x = unwrapped(x)
    low, high = (value.item() for value in torch.aminmax(x))
    if not (low >= 0 and high <= levels - 1):  # a NaN fails this too
        raise ValueError(f"{name}: expected levels 0 .. {levels - 1}; got {low:g} .. {high:g}")
    if x.dtype.is_floating_point and not torch.equal(x, x.round()):
        raise ValueError(f"{name}: expected whole levels 0 .. {levels - 1}; got fractions between them")


def as_size(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from one number or a pair."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2:
        raise ValueError(f"{name}: expected one number or (height, width); got {size!r}")
    for value in pair:
        check_whole(name, value, 1)
    return pair[0], pair[1]
