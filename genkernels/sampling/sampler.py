"""``genkernels.fast_sampler``: samples from any autoregressive model at the cost of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arguments import check_model
from ..distributions import Categorical, Distribution, make_distribution
from ..ops.core.torch_internals import tree_map
from .compile import compile_program
from .executors.registry import teacher_forced
from .predictor import Predictor
from .program.program import Program
from .request import Progress, as_size, check_levels, check_request, check_whole
from .sample import FULL_FORWARD, in_evaluation, sample

VERIFICATION_SIZE = (6, 7)
MOST_CHANGES = 256  # sub-pixels that are changed in turn; of larger images some


@dataclass(frozen=True)
class Verification:
    """Result of comparing the program with the model on random images, before the first use.

    Attributes:
        size: (height, width) of these images.
        pairs: of a changed sub-pixel and the logits at it or at one before it: none of these moved.
        error: the largest difference between the logits of the program, which goes sub-pixel by sub-pixel, and those
            of the model.
        scale: the largest logit.
    """

    size: tuple[int, int]
    pairs: int
    error: float
    scale: float

    def __str__(self) -> str:
        return (
            f"on {self.size[0]} x {self.size[1]} images, none of {self.pairs:,} pairs shows a sub-pixel that reaches "
            f"itself or an earlier one, and the logits equal the model's within {self.error:.1e} (largest: "
            f"{self.scale:.3g})"
        )


class FastSampler:
    """Samples from a model; made by :func:`genkernels.fast_sampler`.

    Attributes:
        model: as it was given; its weights may change between calls.
        distribution: what the model predicts of a pixel's levels.
        in_channels, levels: of the images.
        verification: what was checked before the first use; see :class:`Verification`.
        program: the sampling program of the last call, for reading (``print`` it) and measuring.
    """

    def __init__(
        self,
        model: nn.Module,
        distribution: Distribution,
        scale: Callable[[Tensor], Tensor],
    ) -> None:
        self.model, self.distribution = model, distribution
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
        return table.detach().to(like.dtype)

    @torch.no_grad()
    def compile(self, n: int, size: int | Sequence[int], condition: Any = None) -> Program:
        """The program for images of a size; ``n`` matters with a condition alone.

        Raises:
            NotTraceable: the model cannot be sampled this way; with the name of the layer and the reason.
        """
        shape = (n, self.in_channels, *as_size("size", size))
        with in_evaluation(self.model):
            self.program = compile_program(self.model, self._predict, shape, self.table(), condition, self.distribution)
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
        """Draw n images of ``size`` (height and width, or one number): levels, uint8 [n, C, H, W].

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
            distribution=self.distribution, condition=condition, progress=progress, backend=backend,
        )  # fmt: skip

    def _predict(self, images: Tensor, condition: Any) -> Tensor:
        if isinstance(self.model, Predictor):
            return self.model.predict(images, condition)
        return self.model(images) if condition is None else self.model(images, condition)

    def _logits(self, images: Tensor, condition: Any) -> Tensor:
        """[n, channels, predictions, H, W] from images as the model sees them."""
        logits = self._predict(images, condition)
        return logits.unsqueeze(2) if logits.dim() == 4 else logits

    @torch.no_grad()
    def verify(self, images: Tensor, condition: Any) -> Verification:
        """Compares the program with the model on images, uint8 [n, C, H, W], and changes their sub-pixels in turn.

        Raises:
            ValueError: the model is not causal, or the program computes something else; with what was found.
        """
        n, colours, height, width = images.shape
        program = self.compile(n, (height, width), condition)
        table = self.table()
        with in_evaluation(self.model):
            expected = self._logits(table[images.long()], condition)
        got = teacher_forced(program, images)
        wrong = (~self.distribution.is_sound(expected.flatten(2).transpose(1, 2).flatten(0, 1))).nonzero()
        if len(wrong):
            where = (n, self.distribution.predictions, height, width)
            image, channel, row, column = np.unravel_index(int(wrong[0]), where)
            raise self.distribution.unsound(int(image), int(channel), int(row), int(column))
        error, scale = float(_distance(got, expected).max()), float(expected[expected.isfinite()].abs().max())
        limit = 2e3 * torch.finfo(table.dtype).eps * max(scale, 1)
        if not error <= limit:
            raise ValueError(
                f"model: the logits of its sampling program differ by {error:.3g}; allowed are {limit:.3g}"
            )

        order = torch.arange(height * width * colours, device=images.device)
        order = order.view(height, width, colours).permute(2, 0, 1)  # sub-pixels in drawing order
        first = order[: self.distribution.predictions]  # that a prediction is for
        places = torch.linspace(0, order.numel() - 1, min(order.numel(), MOST_CHANGES), device=images.device).long()
        pairs = 0
        for part in places.split(max(1, 64 // n)):  # image by image of a part, one sub-pixel of all n is changed
            here, not_after = order == part[:, None, None, None], first <= part[:, None, None, None]
            shifted = (images.long() + 1 + self.levels // 2) % self.levels
            changed = torch.where(here[:, None], shifted, images.long()).flatten(0, 1)
            with in_evaluation(self.model):
                logits = self._logits(table[changed], _repeated(condition, n, len(part)))
            moved = _distance(logits.unflatten(0, (-1, n)), expected).amax(2).transpose(0, 1)[:, not_after]
            pairs += moved.numel()
            if not float(moved.max()) <= limit:
                raise ValueError(
                    "model: not causal, changing a sub-pixel moves the logits at it or before it by "
                    f"{float(moved.max()):.3g}"
                )
        self.verification = Verification((height, width), pairs, error, scale)
        return self.verification


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|, and 0 where both are the same infinity."""
    return torch.where(a == b, 0, a - b).abs()


def _repeated(condition: Any, n: int, times: int) -> Any:
    """The condition of n images for ``times`` as many."""
    return tree_map(
        lambda t: t.repeat(times, *[1] * (t.dim() - 1)) if isinstance(t, Tensor) and t.shape[:1] == (n,) else t,
        condition,
    )


def fast_sampler(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    levels: int | None = None,
    in_channels: int | None = None,
    scale: Callable[[Tensor], Tensor] | None = None,
    condition: Any = None,
    distribution: str = Categorical.name,
    mixtures: int = 10,
) -> FastSampler:
    """A sampler for a causal model of images that draws them in about the time of one forward pass.

    The model's forward pass is run once on a tensor that records what happens to it, and becomes a sampling program
    (:mod:`genkernels.sampling`). Supported are convolutions that keep the resolution (masked in
    whatever way), shifts by padding and slicing, splitting, concatenating and permuting channels, sums, products,
    activations, all of them in place too, linear layers on channels that come last, batch norm in evaluation, Row LSTM
    and Diagonal BiLSTM of this package, and whatever does not depend on the image. Before
    the sampler is returned, it is compared with the model on random images; see :class:`Verification`. It may be used
    from many threads at once.

    Args:
        model: maps images [N, C, H, W], as ``scale`` makes them, and a condition where there is one, to logits
            [N, levels, C, H, W]; or [N, levels, H, W] where C is 1; or to what else ``distribution`` says. Or an
            :class:`~genkernels.models.AutoregressiveModel`, of which all else is known.
        example: levels, [n, C, H, W], to compare on; needed for a model that takes images of one size alone. None for
            random ones of 6 x 7.
        levels: values that a sub-pixel takes, 2 to 256.
        in_channels: C; not needed with an example.
        scale: from levels 0 .. levels - 1 (a tensor in the model's dtype) to what the model sees; None for
            ``x / (levels - 1)``.
        condition: one for the example, or for two images, its tensors with an entry for each; None where the model
            takes none.
        distribution: "categorical": the model predicts logits; "logistic_mixture": from the pixels before it, the
            parameters of each pixel's :class:`~genkernels.distributions.DiscretizedLogisticMixture`, in the layout of
            PixelCNN++: [N, mixtures * (1 + 2 C + C (C - 1) / 2), H, W].
        mixtures: components of the latter, 1 to 128.

    Raises:
        TypeError: the model is no ``nn.Module``.
        ValueError: an argument does not fit, or the model is not causal; the message says what.
        NotTraceable: (a ValueError) the model cannot be sampled this way; with the name of the layer and the reason.
    """
    check_model(model)
    if isinstance(model, Predictor):
        levels, in_channels = model.levels, model.in_channels
    if levels is None:
        raise ValueError("levels: expected the number of values that a sub-pixel takes; got None")
    check_whole("levels", levels, 2, 256)
    if example is not None:
        if example.dim() != 4 or example.shape[1] != (in_channels or example.shape[1]):
            wanted = f"[n, {in_channels or 'C'}, H, W]"
            raise ValueError(f"example: expected levels {wanted}; got shape {list(example.shape)}")
        check_levels("example", example, levels)
        in_channels = example.shape[1]
    if in_channels is None:
        raise ValueError("in_channels: expected the number of sub-pixels of a pixel, or an example; got neither")
    check_whole("in_channels", in_channels, 1)
    steps = levels - 1
    own = (
        model.distribution
        if isinstance(model, Predictor)
        else make_distribution(distribution, levels, in_channels, mixtures)
    )
    result = FastSampler(model, own, scale or (lambda x: x / steps))
    if example is None:
        generator = torch.Generator().manual_seed(0)
        example = torch.randint(0, levels, (2, in_channels, *VERIFICATION_SIZE), generator=generator)
    result.verify(example.to(result.table().device, torch.uint8), condition)
    return result
