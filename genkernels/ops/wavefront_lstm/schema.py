"""The torch operators: their signatures, their arguments by name, and the tensors that they return.

    genkernels::wavefront_lstm        gates, weight, h0, c0 -> hidden, saved
    genkernels::wavefront_lstm_pair   two directions over images of one shape, side by side
    genkernels::wavefront_layer       x, input_weight, input_bias, weight, h0, c0 -> hidden, saved
    genkernels::wavefront_layer_pair  two directions over diagonals and their sum, the mirrored one a row lower

A layer convolves x to the gates of each direction. To each operator belongs one that is called ``..._backward``: it
takes the gradient of hidden in front of the tensors and ``saved`` behind them, and returns the gradient of each tensor.

``keep`` says whether ``saved`` is wanted: the gates after their sigmoid or tanh and the cells c, 5h numbers a pixel,
image by image in an order that is the kernel's own business. Without it ``saved`` is empty, and backward computes
forward once more.
``needs`` says which gradients are wanted; the others come back empty.

The dispatcher, autograd and ``torch.func`` pass arguments in a row. :class:`Operator` is the one place that knows their
order; everywhere else they have the names of :class:`Direction`, :class:`Inputs` and the two calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..core.layout import empty_grad_input, input_format, output_format
from .geometry import Geometry, geometries_of

library = torch.library.Library("genkernels", "FRAGMENT")


class Direction(NamedTuple):
    """The tensors of one direction; or the gradients of these, or which of them are wanted.

    A recurrence is given its gates; a layer has the weights of the convolution that makes them of x instead.
    """

    gates: Any  # [N, 4h, H, W], before the recurrence
    input_weight: Any  # [4h, C, kh, kw]
    input_bias: Any  # [4h]
    weight: Any  # [taps, 4h, h]
    h0: Any  # [h]
    c0: Any  # [h]


class Inputs(NamedTuple):
    """What hidden is computed of. ``x`` and ``mask_type`` are those of a layer, and None for a recurrence."""

    x: Tensor | None  # [N, C, H, W]
    mask_type: str | None
    directions: Sequence[Direction]
    geometries: Sequence[Geometry]

    @property
    def image(self) -> Tensor:
        """A tensor with the batch, height, width, dtype and device of all images."""
        return self.directions[0].gates if self.x is None else self.x

    @property
    def hidden_channels(self) -> int:
        return self.directions[0].weight.shape[2]

    def empty_hidden(self) -> list[Tensor]:
        """[N, h, H, W] of each direction of a recurrence, or the one of a layer; not yet written."""
        if self.x is None:
            return [self._empty_hidden(one.gates, input_format(one.gates)) for one in self.directions]
        return [self._empty_hidden(self.x, output_format(self.x, self.directions[0].input_weight))]

    def _empty_hidden(self, image: Tensor, layout: torch.memory_format) -> Tensor:
        batch, _, height, width = image.shape
        shape = (batch, self.hidden_channels, height, width)
        return torch.empty(shape, dtype=image.dtype, device=image.device, memory_format=layout)

    def empty_saved(self, keep: bool) -> Tensor:
        """The buffer for backward, [directions, N, H * W * 5h] of the accumulator's dtype, not yet written; or [0]."""
        image = self.image
        dtype = accumulator(image.dtype)
        if not keep:
            return image.new_empty(0, dtype=dtype)
        batch, _, height, width = image.shape
        return image.new_empty(len(self.directions), batch, height * width * self.hidden_channels * 5, dtype=dtype)


class Gradients(NamedTuple):
    """Where backward writes, by name and in a row; [0] where a gradient is not wanted."""

    image: Tensor  # of x, or of the gates of the first direction
    directions: Sequence[Direction]
    in_a_row: Sequence[Tensor]


class ForwardCall(NamedTuple):
    """The arguments of a forward operator."""

    inputs: Inputs
    keep: bool


class BackwardCall(NamedTuple):
    """The arguments of a backward operator, and what it returns."""

    grad_hidden: Sequence[Tensor]  # of each direction of a recurrence, or the one of a layer
    inputs: Inputs
    saved: Tensor
    grads: Gradients


class Operator(ABC):
    """A forward operator and its backward one, for one or two directions.

    Its tensors come in groups, each with a result of its own: a direction of a recurrence, or everything of a layer.
    """

    kinds: ClassVar[tuple[str, ...]]  # the tensors of a direction, as they follow one another
    options: ClassVar[str]

    def __init__(self, name: str, directions: int) -> None:
        suffixes = [""] if directions == 1 else [f"_{index}" for index in range(directions)]
        groups = self._groups([[f"{kind}{suffix}" for kind in self.kinds] for suffix in suffixes])
        self.name, self.directions = name, directions
        self.group_count, self.group_size = len(groups), len(groups[0])
        self.tensor_count = len(groups) * len(groups[0])
        forward = ", ".join(_typed(group) for group in groups)
        backward = ", ".join(
            f"Tensor grad_hidden{suffix}, {_typed(group)}"
            for group, suffix in zip(groups, suffixes if len(groups) > 1 else [""], strict=True)
        )
        library.define(f"{name}({forward}, {self.options}, bool keep) -> {_results(len(groups) + 1)}")
        library.define(
            f"{name}_backward({backward}, Tensor saved, {self.options}, bool[{self.tensor_count}] needs)"
            f" -> {_results(self.tensor_count)}"
        )
        self.forward_op = getattr(torch.ops.genkernels, name).default
        self.backward_op = getattr(torch.ops.genkernels, f"{name}_backward").default

    @staticmethod
    @abstractmethod
    def _groups(directions: list[list[str]]) -> list[list[str]]:
        """The names of the tensors of each group, from those of each direction."""

    @abstractmethod
    def by_direction(self, values: Sequence[Any]) -> list[Direction]:
        """The tensors, gradients or flags of each direction, from those of all tensors in a row."""

    @abstractmethod
    def inputs(self, tensors: Sequence[Any], options: Sequence[Any]) -> Inputs:
        """From all tensors in a row and the options."""

    @abstractmethod
    def inputs_of_group(self, tensors: Sequence[Any], options: Sequence[Any], group: int) -> Inputs:
        """The same of the tensors of one group."""

    def forward_call(self, arguments: Sequence[Any]) -> ForwardCall:
        return ForwardCall(self.inputs(arguments[:-4], arguments[-4:-1]), arguments[-1])

    def backward_call(self, arguments: Sequence[Any]) -> BackwardCall:
        grads, tensors = self.without_grads(arguments[:-5])
        inputs, needs = self.inputs(tensors, arguments[-4:-1]), arguments[-1]
        return BackwardCall(grads, inputs, arguments[-5], self._empty_gradients(tensors, needs))

    def without_grads(self, values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Of the values that go with the tensors of a backward operator those of grad_hidden, and the others."""
        size = 1 + self.group_size
        return list(values[::size]), [value for index, value in enumerate(values) if index % size]

    def _empty_gradients(self, tensors: Sequence[Any], needs: Sequence[bool]) -> Gradients:
        nothing = tensors[0].new_empty
        grads = [
            nothing(0)
            if value is None or not need
            else empty_grad_input(value)
            if index % self.group_size == 0  # an image: gates or x
            else torch.empty_like(value, memory_format=torch.contiguous_format)
            for index, (value, need) in enumerate(zip(tensors, needs, strict=True))
        ]
        return Gradients(grads[0], self.by_direction(grads), grads)


class Recurrence(Operator):
    """The gates of each direction are given, and each has a result of its own."""

    kinds = ("gates", "weight", "h0", "c0")
    options = "str front, int[] taps, bool[] mirrored"

    @staticmethod
    def _groups(directions: list[list[str]]) -> list[list[str]]:
        return directions

    def by_direction(self, values: Sequence[Any]) -> list[Direction]:
        groups = (values[first : first + 4] for first in range(0, len(values), 4))
        return [Direction(gates, None, None, weight, h0, c0) for gates, weight, h0, c0 in groups]

    def forward_in_a_row(self, inputs: Inputs, keep: bool) -> list[Any]:
        """What the forward operator takes."""
        tensors = [value for one in inputs.directions for value in (one.gates, one.weight, one.h0, one.c0)]
        return [*tensors, *self._options(inputs), keep]

    def backward_in_a_row(
        self, grad_hidden: Sequence[Tensor], inputs: Inputs, saved: Tensor, needs: Sequence[Direction]
    ) -> list[Any]:
        """What the backward operator takes."""
        tensors = [
            value
            for grad, own in zip(grad_hidden, inputs.directions, strict=True)
            for value in (grad, own.gates, own.weight, own.h0, own.c0)
        ]
        wanted = [flag for own in needs for flag in (own.gates, own.weight, own.h0, own.c0)]
        return [*tensors, saved, *self._options(inputs), wanted]

    @staticmethod
    def _options(inputs: Inputs) -> tuple[str, list[int], list[bool]]:
        first = inputs.geometries[0]
        return first.front, list(first.taps), [one.mirrored for one in inputs.geometries]

    def inputs(self, tensors: Sequence[Any], options: Sequence[Any]) -> Inputs:
        front, taps, mirrored = options
        return Inputs(None, None, self.by_direction(tensors), geometries_of(front, tuple(taps), tuple(mirrored)))

    def inputs_of_group(self, tensors: Sequence[Any], options: Sequence[Any], group: int) -> Inputs:
        front, taps, mirrored = options
        return self.inputs(tensors, (front, taps, [mirrored[group]]))


class Layer(Operator):
    """x is convolved to the gates of each direction; of two, the second is mirrored and they are added up."""

    kinds = ("input_weight", "input_bias", "weight", "h0", "c0")
    options = "str mask_type, str front, int[] taps"

    @staticmethod
    def _groups(directions: list[list[str]]) -> list[list[str]]:
        return [["x", *(name for names in directions for name in names)]]

    def by_direction(self, values: Sequence[Any]) -> list[Direction]:
        return [Direction(None, *values[first : first + 5]) for first in range(1, len(values), 5)]

    def inputs(self, tensors: Sequence[Any], options: Sequence[Any]) -> Inputs:
        mask_type, front, taps = options
        mirrored = (False, True)[: self.directions]
        return Inputs(tensors[0], mask_type, self.by_direction(tensors), geometries_of(front, tuple(taps), mirrored))

    def inputs_of_group(self, tensors: Sequence[Any], options: Sequence[Any], group: int) -> Inputs:
        return self.inputs(tensors, options)


def _typed(names: Sequence[str]) -> str:
    optional = ("input_bias", "h0", "c0")
    return ", ".join(f"Tensor{'?' if name.startswith(optional) else ''} {name}" for name in names)


def _results(count: int) -> str:
    return f"({', '.join(['Tensor'] * count)})"


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# By the number of directions.
RECURRENCES = {1: Recurrence("wavefront_lstm", 1), 2: Recurrence("wavefront_lstm_pair", 2)}
LAYERS = {1: Layer("wavefront_layer", 1), 2: Layer("wavefront_layer_pair", 2)}
