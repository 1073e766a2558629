"""FastSampler: samples from any autoregressive model at the cost of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..distributions import Distribution
from .compile import compile_program
from .output_layout import arranged, layouts_of
from .predictor import Interface, Predictor
from .program.program import Program
from .request import Progress, as_size, check_request, check_whole
from .sample import FULL_FORWARD, in_evaluation, sample
from .steps import Steps


@dataclass(frozen=True)
class Verification:
    """Result of comparing the program with the model on random images, before the first use.

    Attributes:
        sizes: (height, width) of these images.
        pairs: of a changed sub-pixel and the logits at it or at one before it: none of these moved.
        error: the largest difference between the logits of the program, which goes sub-pixel by sub-pixel, and those
            of the model.
        scale: the largest logit.
    """

    sizes: tuple[tuple[int, int], ...]
    pairs: int
    error: float
    scale: float

    def __str__(self) -> str:
        sizes = " and ".join(f"{height} x {width}" for height, width in self.sizes)
        return (
            f"on {sizes} images, none of {self.pairs:,} pairs shows a sub-pixel that reaches itself or an earlier one, "
            f"and the logits equal the model's within {self.error:.1e} (largest: {self.scale:.3g})"
        )


def sampler_of(model: Any) -> FastSampler:
    """The sampler of a :class:`~genkernels.sampling.predictor.Predictor`, which needs no proof."""
    highest = model.levels - 1
    return FastSampler(model, model.distribution, lambda x: x / highest, Interface())


class FastSampler:
    """Samples from a model; made by :func:`genkernels.fast_sampler`.

    Attributes:
        model: as it was given; its weights may change between calls.
        distribution: what the model predicts of a pixel's levels.
        in_channels, levels: of the images.
        interface: what the model takes and gives.
        verification: what was checked before the first use; see :class:`Verification`.
        program: the sampling program of the last call, for reading (``print`` it) and measuring.
    """

    def __init__(
        self,
        model: nn.Module,
        distribution: Distribution,
        scale: Callable[[Tensor], Tensor],
        interface: Interface,
    ) -> None:
        self.model, self.distribution, self.interface = model, distribution, interface
        self.in_channels, self.levels = distribution.colours, distribution.levels
        self.scale = scale
        self.verification: Verification | None = None
        self.program: Program | None = None

    def __repr__(self) -> str:
        return (
            f"FastSampler({type(self.model).__name__}, in_channels={self.in_channels}, levels={self.levels})\n"
            f"verified {self.verification}"
        )

    def table(self) -> Tensor:
        """[levels]: what the model sees for each level, in its dtype and on its device."""
        like = next((p for p in self.model.parameters() if p.dtype.is_floating_point), torch.empty(0))
        values = torch.arange(self.levels, device=like.device, dtype=like.dtype)
        table = self.scale(values)
        if table.shape != values.shape or not table.dtype.is_floating_point:
            raise ValueError(
                f"scale: expected floating-point numbers [{self.levels}] from [{self.levels}] levels; "
                f"got {table.dtype} {list(table.shape)}"
            )
        table = table.detach().to(like.dtype)
        if self.interface.index and not torch.equal(table.long(), torch.arange(self.levels, device=table.device)):
            raise ValueError(f"levels: {table.dtype} does not hold all of 0 .. {self.levels - 1}; take a float32 model")
        return table

    @torch.no_grad()
    def compile(self, n: int, size: int | Sequence[int], condition: Any = None) -> Program:
        """The program for images of a size; ``n`` matters with a condition alone.

        Raises:
            NotTraceable: the model cannot be sampled this way; with the name of the layer and the reason.
        """
        shape = (n, self.in_channels, *as_size("size", size))
        with in_evaluation(self.model):
            self.program = compile_program(
                self.model, self._predict, shape, self.table(), condition, self.distribution, self.interface
            )
        return self.program

    @torch.no_grad()
    def sample(
        self,
        n: int,
        size: int | Sequence[int],
        *,
        uniforms: Tensor | None = None,
        given: Tensor | None = None,
        known: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        condition: Any = None,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """Draw n images of ``size`` (height and width, or one number): levels [n, C, H, W].

        They are uint8, of more than 256 levels int16, of more than 32,768 int32.

        The arguments are those of :meth:`genkernels.models.AutoregressiveModel.sample`; ``condition`` is what the model
        takes as its second argument.

        Raises:
            ValueError: an argument does not fit; the message names it.
            NotTraceable: the model cannot be sampled so at this size or condition; with the layer and the reason.
        """
        check_whole("n", n, 1)
        table = self.table()
        request = check_request(
            (n, self.in_channels, *as_size("size", size)), self.levels, table.device,
            uniforms=uniforms, given=given, known=known, temperature=temperature, top_k=top_k, generator=generator,
        )  # fmt: skip
        if backend != FULL_FORWARD:
            self.compile(n, size, condition)
        return sample(
            self.model, self._predict, table, request,
            distribution=self.distribution, condition=condition, interface=self.interface, progress=progress,
            backend=backend,
        )  # fmt: skip

    @torch.no_grad()
    def steps(
        self,
        n: int,
        size: int | Sequence[int],
        *,
        given: Tensor | None = None,
        known: Tensor | None = None,
        condition: Any = None,
        backend: str | None = None,
    ) -> Steps:
        """Goes through n images and asks for the levels, place by place: see :class:`~genkernels.sampling.Steps`.

        Args:
            n, size, given, known, condition: as in :meth:`sample`; what is known in all images is passed by.
            backend: "cpu" or "torch"; None for the quicker one that can run the program.

        Raises:
            ValueError: an argument does not fit; the message names it.
            NotTraceable: the model cannot be sampled so at this size or condition; with the layer and the reason.
        """
        check_whole("n", n, 1)
        request = check_request(
            (n, self.in_channels, *as_size("size", size)), self.levels, torch.device("cpu"),
            uniforms=None, given=given, known=known, temperature=1.0, top_k=None, generator=None,
        )  # fmt: skip
        return Steps(self.compile(n, size, condition), request.images, ~request.free, backend)

    def with_layout(self, layout: str) -> FastSampler:
        """A sampler that takes the model's output for one of that layout."""
        return FastSampler(self.model, self.distribution, self.scale, replace(self.interface, layout=layout))

    def sizes(self, shape: Sequence[int]) -> dict[str, int]:
        """Of the letters of a layout, for images [N, C, H, W]."""
        n, _, height, width = shape
        own = self.distribution
        return {"N": n, "L": own.outputs, "C": own.predictions, "H": height, "W": width}

    def outputs(self, images: Tensor, condition: Any) -> Tensor:
        """What the model itself gives."""
        outputs = self.model(images) if condition is None else self.model(images, condition)
        if not isinstance(outputs, Tensor):
            raise ValueError(f"model: expected one tensor of logits; got {type(outputs).__name__}")
        return outputs

    def _predict(self, images: Tensor, condition: Any) -> Tensor:
        if isinstance(self.model, Predictor):
            return self.model.predict(images, condition)
        sizes, outputs = self.sizes(images.shape), self.outputs(images, condition)
        layouts_of(outputs.shape, sizes, self.interface.layout)
        return self.distribution.from_outputs(arranged(outputs, self.interface.layout, sizes))

    def logits(self, images: Tensor, condition: Any) -> Tensor:
        """[n, channels, predictions, H, W] from levels."""
        logits = self._predict(self.interface.seen(images, self.table()), condition)
        return logits.unsqueeze(2) if logits.dim() == 4 else logits
