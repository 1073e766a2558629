"""The native CPU way of a recurrent layer: convolution and walk in one.

A walk's gates are the largest tensor of a layer, 4h numbers a pixel, and their gradient is another. The walk computes
them of x in the product of every front: they exist for a front at a time, and only what their activations give is kept
for backward. Backward has a buffer for the gradient of the gates of a few images, which the walk writes and the
convolution's backward takes from the cache. Weight gradients are added up from few images to few images, in order: the
result depends on the thread count alone.

All of this is in float32; 16-bit tensors are converted, a few images at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, gcd

import torch
from torch import Tensor

from ..core.strides import readable
from ..core.torch_internals import add_each
from ..masked_conv import cpu as conv
from ..masked_conv.mask import MaskSpec
from . import cpu as lstm
from .geometry import Geometry
from .layer.schema import by_walk, empty_grads, empty_hidden, empty_saved


def why_not(x: Tensor) -> str | None:
    """The reason why the native kernels cannot take x, or None where they can."""
    return lstm.why_not(x, ())


_ROWS = 32  # cells of a product that make good use of the weights, as in csrc/cpu/wavefront_lstm/steps.h
# Gates of a round, at least. Every round packs all weights, sets up its scratch and adds up the weights' gradients:
# backward takes 1 to 3 % longer with rounds of 8 MB than with those of 16 MB. Forward has
# rounds of 16-bit tensors alone.
_FLOATS = 4 << 20
_NOT_DILATED = (1, 1)


def forward(
    tensors: Sequence[Tensor | None], mask_type: str, geometries: Sequence[Geometry], keep: bool
) -> tuple[Tensor, Tensor]:
    """(x, the parameters of each walk) -> hidden, and what backward needs where ``keep``."""
    x, weight = _present(tensors[0]), _present(tensors[1])
    hidden, saved = empty_hidden(x, weight), empty_saved(x, weight, len(geometries), keep)
    if hidden.numel() == 0:
        return hidden, saved
    layer = _Layer(tensors, mask_type, geometries)
    for images in layer.rounds() if x.dtype != torch.float32 else [slice(len(x))]:
        results = [_float_or_new(hidden[images])]
        results += [torch.empty_like(results[0]) for _ in geometries[1:]]
        walks = [(None, *state) for _, _, *state in layer.parameters]
        kept = saved[:, images] if keep else None
        lstm.forward_into(results, kept, walks, geometries, layer.convolution(layer.x[images].float()))
        for right in results[1:]:
            results[0][:, :, 1:] += right[:, :, :-1]
        if results[0].dtype != hidden.dtype:
            hidden[images] = results[0]
    return hidden, saved


def backward(
    grad_hidden: Tensor,
    tensors: Sequence[Tensor | None],
    saved: Tensor,
    mask_type: str,
    geometries: Sequence[Geometry],
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of x and of the parameters of each walk."""
    grad_x, *others = grads = empty_grads(tensors, needs)
    if _present(tensors[0]).numel() == 0:
        return tuple(grad.zero_() for grad in grads)
    layer = _Layer(tensors, mask_type, geometries)
    wants_gates = [any(grad.numel() for grad in (grad_x, *walk[:2])) for walk in by_walk(others)]
    buffers = layer.new_gates()
    sums = [grad.float() for grad in others]  # a float32 one is the result itself
    parts = sums  # of the round at hand
    for images in layer.rounds():
        x = layer.x[images].float()
        grad_gates = [buffer[: len(x)] for buffer in buffers]
        kept = saved[:, images] if saved.numel() else None
        grads_of_walks = layer.grads_of_walks(grad_hidden[images].float())
        walks = [(grad, None, *state) for grad, (_, _, *state) in zip(grads_of_walks, layer.parameters, strict=True)]
        wanted = [
            (into if wants else None, *state)
            for into, wants, (_, _, *state) in zip(grad_gates, wants_gates, by_walk(parts), strict=True)
        ]
        lstm.backward_into(wanted, walks, kept, geometries, layer.convolution(x))
        if any(wants_gates):
            layer.convolve_back(grad_x[images] if grad_x.numel() else None, by_walk(parts), grad_gates, x)
        if parts is sums:
            parts = [torch.empty_like(total) for total in sums]
        else:
            add_each(sums, parts)
    for grad, total in zip(others, sums, strict=True):
        if total is not grad:
            grad.copy_(total)
    return tuple(grads)


class _Layer:
    """What all rounds of one call share: float32 parameters, the mask, how many images a round has."""

    def __init__(self, tensors: Sequence[Tensor | None], mask_type: str, geometries: Sequence[Geometry]) -> None:
        self.x = readable(_present(tensors[0]))
        self.parameters = by_walk([None if t is None else t.float() for t in tensors[1:]])
        self.batch, _, *self.size = self.x.shape
        outputs, inputs, height, width = _present(tensors[1]).shape
        self.spec = MaskSpec(outputs, inputs, (height, width), mask_type, 1, "blocks")
        self.units = outputs // 4
        self.round_size = self._round_size(geometries)

    def _round_size(self, geometries: Sequence[Geometry]) -> int:
        """So many images that all threads walk the same number of units, with fronts that fill a product."""
        height, width = self.size
        walks, threads = len(geometries), torch.get_num_threads()
        even = threads // gcd(threads, walks)
        front = max(1, height * width // max(1, geometries[0].steps(height, width)))
        of_image = max(1, walks * 4 * self.units * height * width)
        wanted = max(ceil(_ROWS / front) * threads / walks, _FLOATS / of_image)
        rounds = max(1, ceil(self.batch / ceil(wanted)))
        return min(self.batch, even * ceil(self.batch / rounds / even))

    def rounds(self) -> Iterator[slice]:
        for first in range(0, self.batch, self.round_size):
            yield slice(first, min(first + self.round_size, self.batch))

    def new_gates(self) -> list[Tensor]:
        """A buffer for the gates' gradient of each walk in a round: [images, 4h, H, W], channels_last."""
        shape = (self.round_size, 4 * self.units, *self.size)
        return [torch.empty(shape, memory_format=torch.channels_last) for _ in self.parameters]

    def convolution(self, x: Tensor) -> lstm.Convolution:
        return lstm.Convolution(x, self.spec, [(_present(weight), bias) for weight, bias, *_ in self.parameters])

    def grads_of_walks(self, grad_hidden: Tensor) -> list[Tensor]:
        """The gradient of the h of each walk: the second one's went a row down before it was added."""
        if len(self.parameters) == 1:
            return [grad_hidden]
        moved = torch.empty_like(grad_hidden)
        moved[:, :, :-1] = grad_hidden[:, :, 1:]
        moved[:, :, -1] = 0
        return [grad_hidden, moved]

    def convolve_back(
        self,
        grad_x: Tensor | None,
        grads: Sequence[Sequence[Tensor]],
        grad_gates: Sequence[Tensor],
        x: Tensor,
    ) -> None:
        """Writes the gradients of the input weights and biases that are wanted, and of x, the walks added up."""
        total = None if grad_x is None else _float_or_new(grad_x)
        for index, (own, to_gates, parameters) in enumerate(zip(grads, grad_gates, self.parameters, strict=True)):
            to_x = total if index == 0 or total is None else torch.empty_like(total)
            wanted = [to_x, *(grad if grad.numel() else None for grad in own[:2])]
            if any(grad is not None for grad in wanted):
                weight = _present(parameters[0])
                conv.backward_into(wanted, to_gates, x, weight, None, self.spec, _NOT_DILATED, "none")
            if total is not None and to_x is not None and to_x is not total:
                total += to_x
        if grad_x is not None and total is not None and total is not grad_x:
            grad_x.copy_(total)


def _float_or_new(t: Tensor) -> Tensor:
    """t itself, or where it is not float32 an unwritten float32 tensor of its shape and layout."""
    return t if t.dtype == torch.float32 else torch.empty_like(t, dtype=torch.float32)


def _present(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
