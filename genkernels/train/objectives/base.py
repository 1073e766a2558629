"""The methods of every training objective: steps, figures over test images, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ...models import GenerativeModel
from ..data.batches import Batch, LabelledImages
from ..data.sources import Dataset
from ..errors import GenkernelsError
from ..metrics import Measure
from ..optimization import OPTIMIZERS, Descent
from ..schedule import factor
from ..settings import Settings

Progress = Callable[[int, int], None]  # called as progress(done, total)
Model = TypeVar("Model", bound=GenerativeModel)


@dataclass(frozen=True)
class Evaluating:
    """How test images are evaluated.

    Attributes:
        batch_size: images at a time.
        progress: called as ``progress(done, total)`` after each batch.
        importance_samples: of a VAE: codes for each image, for a tighter bound.
    """

    batch_size: int = 64
    progress: Progress | None = None
    importance_samples: int | None = None


@dataclass(frozen=True)
class Drawing:
    """How images are drawn.

    Attributes:
        generator: of all random numbers.
        progress: called as ``progress(done, total)`` now and then.
        temperature: of an autoregressive model; below 1 plays safe.
        label: the class of all images; without one, a model with classes draws them in turn.
        first: the number of the first of these images among all that are drawn, from which the turns go on.
    """

    generator: torch.Generator
    progress: Progress | None = None
    temperature: float | None = None
    label: int | None = None
    first: int = 0


@dataclass(frozen=True)
class Objective(Generic[Model]):
    """Base class: a dataclass whose fields are the options of an objective.

    Images are uint8 [N, C, H, W]: levels 0 .. :meth:`levels` - 1.

    Attributes:
        curves: the entries of the history that are drawn and told while training, and what they are called.
        unit: of those entries.
        unmeasured: why test images give no figure, for a family where they give none.
    """

    curves: ClassVar[Mapping[str, str]]
    unit: ClassVar[str]
    unmeasured: ClassVar[str | None] = None

    def levels(self, model: Model) -> int:
        """The number of levels that images are reduced to for this model."""
        return 256

    def takes_labels(self, model: Model) -> bool:
        """Whether the model is conditioned on the classes of the images: then the methods below get their labels."""
        return False

    def model_options(self, dataset: Dataset, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the constructor that follow from the data, beside the size and colours of the images."""
        return {}

    def descents(self, model: Model, settings: Settings) -> dict[str, Descent]:
        """The optimisers of :meth:`step` by name; the names are kept in checkpoints."""
        return {"model": descent_of(model.parameters(), settings)}

    def step(self, model: Model, batch: Batch, descents: Mapping[str, Descent]) -> dict[str, float]:
        """One step on one batch.

        Returns the entries of the history, which keeps their means over some steps.

        Raises:
            NotFiniteError: before a weight took harm.
        """
        raise NotImplementedError

    def evaluate(self, model: Model, test: LabelledImages, how: Evaluating) -> list[Measure]:
        """Figures over test images; none where ``unmeasured`` says why.

        Raises:
            GenkernelsError: importance samples are asked for and the family has no use for them.
        """
        raise NotImplementedError

    def sample(self, model: Model, n: int, how: Drawing) -> Tensor:
        """n images as pictures, uint8 [n, C, H, W] in 0 .. 255, or points float32 [n, 2, 1, 1], on the CPU.

        Raises:
            GenkernelsError: the family draws nothing, or takes no temperature or no label.
        """
        raise NotImplementedError

    def pictures(self, model: Model, test: LabelledImages, n: int, how: Drawing) -> dict[str, dict[str, Tensor]]:
        """Pictures of a finished run: for each file the titled grids in it, uint8 0 .. 255, from n test images.

        For points the titled groups of points, float32 [N, 2, 1, 1]; "modes" are the centres that they lie around.
        """
        raise NotImplementedError


def descent_of(
    parameters: Iterable[nn.Parameter], settings: Settings, *, history: float = 0.0, **options: Any
) -> Descent:
    """The descent of parameters by the run's settings; ``options`` are more arguments of the optimiser."""
    rate = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay} | options
    return Descent(
        OPTIMIZERS[settings.optimizer](parameters, **rate),
        settings.clip,
        factor(settings.schedule, settings.warmup, settings.schedule_steps),
        history,
    )


def refuse(name: str, value: object, family: str) -> None:
    """Raise a GenkernelsError where an option is given that the family has no use for."""
    if value is not None:
        raise GenkernelsError(f"{name}: {family} takes none; got {value}")


def classes_to_draw(model: nn.Module, num_classes: int | None, n: int, how: Drawing) -> Tensor | None:
    """The class of each of n images: the label, or all classes in turn; None for a model without classes."""
    label = how.label
    if num_classes is None:
        refuse("label", label, "a model without classes")
        return None
    if label is not None and not 0 <= label < num_classes:
        raise GenkernelsError(f"label: expected one of the model's classes 0 .. {num_classes - 1}; got {label}")
    device = next(model.parameters()).device
    in_turn = torch.arange(how.first, how.first + n, device=device) % num_classes
    return in_turn if label is None else torch.full_like(in_turn, label)
