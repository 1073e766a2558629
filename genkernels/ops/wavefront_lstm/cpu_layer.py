"""Layers on the native CPU kernels: convolution and recurrence in one, a few images at a time.

The gates of a direction are the largest tensor of a layer, 4h numbers a pixel, and their gradient is another. The
kernel computes them of x in the product of every step: they exist for a step at a time, and only what their activations
give is kept for backward. Backward has a buffer for the gradient of the gates of a few images, which the kernel writes
and the convolution's backward takes from the cache. Weight gradients are added up from few images to few images, in
order: the result depends on the thread count alone.

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
from . import cpu as recurrence
from .schema import BackwardCall, Direction, Inputs

_ROWS = 32  # cells of a product that make good use of the weights, as in csrc/cpu/wavefront_lstm/threads.h
# Gates of a round, at least. Every round packs all weights, sets up its scratch and adds up the weights' gradients:
# backward takes 1 to 3 % longer with rounds of 8 MB than with those of 16 MB. Forward has
# rounds of 16-bit tensors alone.
_FLOATS = 4 << 20
_NOT_DILATED = (1, 1)


def why_not(x: Tensor) -> str | None:
    """The reason why the native kernels cannot take x, or None where they can."""
    return recurrence.why_not(x, ())


def forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Tensor]:
    """Hidden, and what backward needs where ``keep``."""
    (hidden,), saved = inputs.empty_hidden(), inputs.empty_saved(keep)
    if hidden.numel() == 0:
        return hidden, saved
    layer = _Layer(inputs)
    for images in layer.rounds() if hidden.dtype != torch.float32 else [None]:
        of_round = _part(hidden, images)
        results = [_float_or_new(of_round)]
        results += [torch.empty_like(results[0]) for _ in inputs.directions[1:]]
        recurrence.forward_into(results, _part(saved, images, 1) if keep else None, layer.inputs_of(images))
        for right in results[1:]:
            results[0][:, :, 1:] += right[:, :, :-1]
        if results[0] is not of_round:
            of_round.copy_(results[0])
    return hidden, saved


def backward(call: BackwardCall) -> None:
    """Writes the gradients of x and of the parameters of each direction."""
    grads, (grad_hidden,) = call.grads, call.grad_hidden
    if call.inputs.image.numel() == 0:
        for grad in grads.in_a_row:
            grad.zero_()
        return
    layer = _Layer(call.inputs)
    wants_x = grads.image.numel() > 0
    wants_gates = [
        wants_x or any(grad.numel() for grad in (own.input_weight, own.input_bias)) for own in grads.directions
    ]
    buffers = layer.new_gates()
    sums = [Direction(None, *(grad.float() for grad in own[1:])) for own in grads.directions]  # float32: grad itself
    parts = sums  # of the round at hand
    for images in layer.rounds():
        if images is not None and images.start > 0 and parts is sums:
            parts = [Direction(None, *map(torch.empty_like, own[1:])) for own in sums]
        inputs = layer.inputs_of(images)
        targets = [
            own._replace(gates=buffer[: len(inputs.image)] if wants else None)
            for own, buffer, wants in zip(parts, buffers, wants_gates, strict=True)
        ]
        grads_hidden = layer.grads_of_directions(_part(grad_hidden, images).float())
        saved = _part(call.saved, images, 1) if call.saved.numel() else None
        recurrence.backward_into(targets, grads_hidden, saved, inputs)
        if any(wants_gates):
            layer.convolve_back(_part(grads.image, images) if wants_x else None, targets, inputs)
        if parts is not sums:
            add_each(_parameters(sums), _parameters(parts))
    for grad, total in zip(_parameters(grads.directions), _parameters(sums), strict=True):
        if total is not grad:
            grad.copy_(total)


class _Layer:
    """What all rounds of one call share: float32 parameters, the mask, how many images a round has."""

    def __init__(self, inputs: Inputs) -> None:
        self.x = readable(inputs.image)
        wide = [Direction(*[None if t is None else t.float() for t in own]) for own in inputs.directions]
        self.parameters = inputs._replace(directions=wide)
        self.batch, _, *self.size = self.x.shape
        outputs, channels, height, width = inputs.directions[0].input_weight.shape
        assert inputs.mask_type is not None
        self.spec = MaskSpec(outputs, channels, (height, width), inputs.mask_type, 1, "blocks")
        self.hidden_channels = inputs.hidden_channels
        self.round_size = self._round_size()

    def _round_size(self) -> int:
        """So many images that all threads sweep the same number of sequences, with steps that fill a product."""
        height, width = self.size
        directions, threads = len(self.parameters.directions), torch.get_num_threads()
        even = threads // gcd(threads, directions)
        step = max(1, height * width // max(1, self.parameters.geometries[0].steps(height, width)))
        of_image = max(1, directions * 4 * self.hidden_channels * height * width)
        wanted = max(ceil(_ROWS / step) * threads / directions, _FLOATS / of_image)
        rounds = max(1, ceil(self.batch / ceil(wanted)))
        return min(self.batch, even * ceil(self.batch / rounds / even))

    def rounds(self) -> Iterator[slice | None]:
        """The images of each round; None for all at once."""
        if self.round_size == self.batch:
            yield None
            return
        for first in range(0, self.batch, self.round_size):
            yield slice(first, min(first + self.round_size, self.batch))

    def inputs_of(self, images: slice | None) -> Inputs:
        """The call for these images, in float32."""
        return self.parameters._replace(x=_part(self.x, images).float())

    def new_gates(self) -> list[Tensor]:
        """A buffer for the gates' gradient of each direction in a round: [images, 4h, H, W], channels_last."""
        shape = (self.round_size, 4 * self.hidden_channels, *self.size)
        return [torch.empty(shape, memory_format=torch.channels_last) for _ in self.parameters.directions]

    def grads_of_directions(self, grad_hidden: Tensor) -> list[Tensor]:
        """The gradient of the h of each direction: the second one's went a row down before it was added."""
        if len(self.parameters.directions) == 1:
            return [grad_hidden]
        moved = torch.empty_like(grad_hidden)
        moved[:, :, :-1] = grad_hidden[:, :, 1:]
        moved[:, :, -1] = 0
        return [grad_hidden, moved]

    def convolve_back(self, grad_x: Tensor | None, grads: Sequence[Direction], inputs: Inputs) -> None:
        """Writes the gradients of the input weights and biases that are wanted, and of x, summed over directions."""
        total = None if grad_x is None else _float_or_new(grad_x)
        for index, (own, parameters) in enumerate(zip(grads, inputs.directions, strict=True)):
            to_x = total if index == 0 or total is None else torch.empty_like(total)
            wanted = [to_x, *(grad if grad.numel() else None for grad in (own.input_weight, own.input_bias))]
            if any(grad is not None for grad in wanted):
                conv.backward_into(
                    wanted, own.gates, inputs.image, parameters.input_weight, None, self.spec, _NOT_DILATED, "none"
                )
            if total is not None and to_x is not None and to_x is not total:
                total += to_x
        if grad_x is not None and total is not None and total is not grad_x:
            grad_x.copy_(total)


def _parameters(directions: Sequence[Direction]) -> list[Tensor]:
    """The gradients of all parameters."""
    return [grad for own in directions for grad in own[1:]]


def _part(t: Tensor, images: slice | None, dim: int = 0) -> Tensor:
    """t for these images, which ``dim`` counts; t itself for all: a view takes 3 us, as long as a small kernel."""
    if images is None:
        return t
    return t[images] if dim == 0 else t[:, images]


def _float_or_new(t: Tensor) -> Tensor:
    """t itself, or where it is not float32 an unwritten float32 tensor of its shape and layout."""
    return t if t.dtype == torch.float32 else torch.empty_like(t, dtype=torch.float32)
