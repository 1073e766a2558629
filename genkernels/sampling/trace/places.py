"""Where tensors have their channels and pixels: [N, C, H, W], [N, H, W, C], [N, H * W, C] and their like as images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .graph import NotTraceable
from .operator_table import Handler
from .recording import Recording
from .tensor import Traced


def pointwise(tracer: Recording, handler: Handler, tensors: list[Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
    """A handler of a function channel by channel, with the channels where it expects them."""
    name = tracer.operator
    shape = torch.broadcast_shapes(*(a.shape for a in tensors))
    of_images = all(a.dim() == 3 and a.memory[0].dim() > 3 for a in tensors if isinstance(a, Traced))
    if of_images and tuple(shape[1:]) == tracer.size:  # one channel, y[:, 0], and not a signal
        images = [_one_channel(a, shape) for a in args]
        tracer.operator = name
        return handler(tracer, *images, **kwargs).squeeze(1)
    tokens = _token_dimension(tracer, shape, tensors)
    if tokens is not None:
        images = [_unfolded(tracer, a, shape, tokens) for a in args]
        tracer.operator = name
        return _folded(handler(tracer, *images, **kwargs), shape, tokens)
    if not any(isinstance(a, Traced) and a.ends_in_channels() for a in tensors):
        return handler(tracer, *args, **kwargs)

    def moved_first(a: Any) -> Any:
        if not isinstance(a, Tensor) or a.dim() == 0:
            return a
        if isinstance(a, Traced):
            return channels_first(tracer, a if a.shape == shape else a.expand(shape))
        full = a.reshape((1,) * (max(4, len(shape)) - a.dim()) + tuple(a.shape))
        return full.movedim((1, 2), (-2, -1))

    if len(shape) == 2 and any(not isinstance(a, Traced) and a.shape[:-1].numel() > 1 for a in tensors):
        raise NotTraceable(f"layer {tracer.name()!r}: {name} of a tensor for each pixel of the batch's images")
    moved = [moved_first(a) for a in args]
    tracer.operator = name
    return handler(tracer, *moved, **kwargs).movedim((-2, -1), (1, 2)).reshape(shape)


def _token_dimension(tracer: Recording, shape: torch.Size, tensors: list[Tensor]) -> int | None:
    """Which dimension of tensors [N, H * W, C] or [N, C, H * W] the pixels are; None for other tensors."""
    height, width = tracer.size
    if len(shape) != 3 or height == 1:
        return None
    for dim in (1, 2):
        if shape[dim] == height * width and all(
            _has_pixels(a, dim, height, width) for a in tensors if isinstance(a, Traced) and a.shape == shape
        ):
            return dim
    return None


def _unfolded(tracer: Recording, a: Any, shape: torch.Size, dim: int) -> Any:
    """[N, H * W, C] or [N, C, H * W] as [N, C, H, W]; what broadcasts to it likewise, the same at all pixels or not."""
    if not isinstance(a, Tensor) or a.dim() == 0:
        return a
    a = a.reshape((1,) * (3 - a.dim()) + tuple(a.shape))
    if isinstance(a, Traced) and a.shape[dim] == 1:
        a = a.expand(*shape)
    a = a.transpose(1, 2) if dim == 1 else a
    return a.reshape(*a.shape[:2], *(tracer.size if a.shape[2] > 1 else (1, 1)))


def _folded(result: Any, shape: torch.Size, dim: int) -> Any:
    folded = result.reshape(*result.shape[:2], -1)
    return (folded.transpose(1, 2) if dim == 1 else folded).reshape(shape)


def channels_first(tracer: Recording, x: Any) -> Any:
    """[N, H, W, ..., C], [N, W, C] or [N * H * W, C] as [N, ..., C, H, W]."""
    if x.dim() == 2:
        height, width = tracer.size
        pixels = x.as_index().shape[0]
        if pixels != height * width:
            raise NotTraceable(f"layer {tracer.name()!r}: {pixels} rows for an image of {height} x {width} pixels")
        return x.view(-1, height, width, x.shape[1]).movedim(-1, 1)
    return (x.unsqueeze(1) if x.dim() == 3 else x).movedim((1, 2), (-2, -1))


def as_image(tracer: Recording, x: Any) -> Any:
    """[N, K, H, W], [N, H, W], [N, W], [N, H * W] or [N * H * W] as [N, K, H, W] of the image's size."""
    height, width = tracer.size
    if x.dim() > 3:
        return x.reshape(x.shape[0], -1, *x.shape[-2:])
    if x.dim() == 3:
        return x.unsqueeze(1 if tuple(x.shape[1:]) == tracer.size or x.memory[0].dim() > 3 else 2)
    each = x.as_index().numel()
    if each % (height * width):
        raise NotTraceable(f"layer {tracer.name()!r}: {each} numbers for an image of {height} x {width} pixels")
    return x.view(-1, each // (height * width), height, width)


def _has_pixels(a: Traced, dim: int, height: int, width: int) -> bool:
    index = a.as_index()
    image = (index.transpose(1, 2) if dim == 1 else index).unflatten(2, (height, width))
    try:
        a.tracer.numbering.plane(image, "")
    except NotTraceable:
        return False
    return True


def _one_channel(a: Any, shape: torch.Size) -> Any:
    """A tensor that broadcasts to [N, H, W] as one that broadcasts to [N, 1, H, W]; numbers as they are."""
    if not isinstance(a, Tensor) or a.dim() == 0:
        return a
    if isinstance(a, Traced):
        return (a if a.shape == shape else a.expand(shape)).unsqueeze(1)
    return a.reshape((1,) * (3 - a.dim()) + tuple(a.shape)).unsqueeze(1)
