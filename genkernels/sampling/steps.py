"""Sampling with one's own hand at the draw: for entropy coders, constraints, beam search, guidance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distributions import Categorical, Distribution
from .executors.registry import walk
from .executors.stops import Stop
from .program.program import Program
from .request import level_dtype


class Step:
    """A place of the images where levels are wanted: set :attr:`levels`, or call :meth:`draw`.

    Attributes:
        row, column: of the pixel.
        colour: of the sub-pixel; None where all colours of the pixel are wanted together, since none waits for another.
        parameters: what the model predicts there, float32 [n, K]: logits of a softmax, parameters of a mixture or
            whatever a model of one's own gives; [n, C, K] for all colours. Valid until the next step.
    """

    __slots__ = ("_distribution", "_images", "_is_set", "_known", "colour", "column", "parameters", "row")

    def __init__(self, stop: Stop, distribution: Distribution, images: np.ndarray, known: np.ndarray) -> None:
        self.row, self.column, self.colour, self.parameters = stop
        self._distribution, self._images, self._known = distribution, images, known
        self._is_set = False

    @property
    def levels(self) -> np.ndarray:
        """Those of the place, int32 [n], or [n, C] of all colours. What an image knows stays as it is."""
        return self._images[self._place]

    @levels.setter
    def levels(self, levels: Any) -> None:
        place = self._place
        given, old = np.asarray(levels), self._images[place]
        if given.shape not in ((), old.shape):
            raise ValueError(f"levels: expected {list(old.shape)} or one number; got shape {list(given.shape)}")
        if given.dtype.kind not in "iu":
            raise ValueError(f"levels: expected whole numbers; got {given.dtype}")
        if given.min() < 0 or given.max() >= self._distribution.levels:
            raise ValueError(
                f"levels: expected 0 .. {self._distribution.levels - 1}; got {given.min()} .. {given.max()}"
            )
        self._images[place] = np.where(self._known[place], old, given)
        self._is_set = True

    def log_probabilities(self) -> np.ndarray:
        """log p(level) in nats of each level: float64 [n, levels], or [n, C, levels]. Of a softmax.

        Raises:
            ValueError: the model does not predict logits.
        """
        if not isinstance(self._distribution, Categorical):
            raise ValueError(f"distribution: expected a softmax of all levels; got {self._distribution.name!r}")
        shifted = self.parameters.astype(np.float64)
        shifted -= shifted.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    def draw(self, uniforms: Any, temperature: float = 1.0, top_k: int | None = None) -> np.ndarray:
        """Draws the levels as :meth:`FastSampler.sample` does, from numbers [n] in [0, 1) (or [n, C]); gives them."""
        numbers = torch.as_tensor(np.asarray(uniforms), dtype=torch.float64).flatten()
        parameters = torch.from_numpy(self.parameters).flatten(0, -2)
        earlier = torch.from_numpy(self._images[:, : self.colour or 0, self.row, self.column])
        if self.colour is None:
            earlier = earlier.new_zeros(len(parameters), 0)
        drawn = self._distribution.draw(parameters, earlier, numbers, temperature, top_k)
        self.levels = drawn.view(self.levels.shape).numpy()
        return self.levels

    @property
    def _place(self) -> tuple[Any, ...]:
        return (slice(None), slice(None) if self.colour is None else self.colour, self.row, self.column)


class Steps:
    """The places of images in drawing order; made by ``steps()`` of a sampler or of one of this package's models::

        steps = sampler.steps(n, size)
        for step in steps:
            step.levels = decoder.decode(step.log_probabilities())
        images = steps.images

    A loop that is left early leaves nothing behind. The program is that of the weights at the beginning. One thread at
    a time may go through it; others may have steps of their own.

    Attributes:
        images: the levels so far, [n, C, H, W], 0 where there are none yet.
    """

    def __init__(self, program: Program, images: Tensor, known: Tensor, backend: str | None) -> None:
        self._distribution = program.distribution
        self._levels = images.to("cpu", torch.int32).contiguous()
        self._known = known.cpu()
        self._walk = walk(program, self._levels, self._known, backend)
        self._iterator = self._places()

    @property
    def images(self) -> Tensor:
        return self._levels.to(level_dtype(self._distribution.levels))

    def __iter__(self) -> Iterator[Step]:
        return self._iterator

    def __next__(self) -> Step:
        return next(self._iterator)

    def _places(self) -> Iterator[Step]:
        images, known, distribution = self._levels.numpy(), self._known.numpy(), self._distribution
        for stop in self._walk:
            step = Step(stop, distribution, images, known)
            yield step
            if not step._is_set:
                colour = "" if step.colour is None else f", colour {step.colour}"
                raise ValueError(f"levels: expected some at row {step.row}, column {step.column}{colour}; got none")
