"""The methods of every training objective: steps, figures over test images, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ...models import GenerativeModel
from ..data.sources import Dataset
from ..errors import GenkernelsError
from ..metrics import Measure
from ..settings import Settings

Progress = Callable[[int, int], None]  # called as progress(done, total)
Model = TypeVar("Model", bound=GenerativeModel)

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),  # one pass over memory where the default makes ten
    "rmsprop": torch.optim.RMSprop,
}


class NotFiniteError(ArithmeticError):
    """A loss or a gradient is infinite or NaN; the weights are as they were before it."""

    def __init__(self, what: str, value: float) -> None:
        super().__init__(f"the {what} became {value}")


class Objective(Generic[Model]):
    """Base class. Images are uint8 [N, C, H, W]: levels 0 .. :meth:`levels` - 1.

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

    def optimizers(self, model: Model, settings: Settings) -> dict[str, torch.optim.Optimizer]:
        """The optimisers of :meth:`step` by name; the names are kept in checkpoints."""
        return {"model": OPTIMIZERS[settings.optimizer](model.parameters(), lr=settings.learning_rate)}

    def step(
        self,
        model: Model,
        images: Tensor,
        optimizers: Mapping[str, torch.optim.Optimizer],
        clip: float,
        labels: Tensor | None = None,
    ) -> dict[str, float]:
        """One step on one batch, int64 labels [N] with it where the model takes them.

        Returns the entries of the history, which keeps their means over some steps.

        Raises:
            NotFiniteError: before a weight took harm.
        """
        raise NotImplementedError

    def evaluate(
        self,
        model: Model,
        images: Tensor,
        batch_size: int = 64,
        progress: Progress | None = None,
        importance_samples: int | None = None,
        labels: Tensor | None = None,
    ) -> list[Measure]:
        """Figures over test images; none where ``unmeasured`` says why.

        Raises:
            GenkernelsError: ``importance_samples`` is given and the family has no use for them.
        """
        raise NotImplementedError

    def sample(
        self,
        model: Model,
        n: int,
        generator: torch.Generator,
        progress: Progress | None = None,
        temperature: float | None = None,
        label: int | None = None,
    ) -> Tensor:
        """n images as pictures, uint8 [n, C, H, W] in 0 .. 255, on the CPU.

        Raises:
            GenkernelsError: the family draws nothing, or takes no temperature or no label (the class of all images;
                without one, a model with classes draws them in turn).
        """
        raise NotImplementedError

    def pictures(
        self, model: Model, images: Tensor, n: int, generator: torch.Generator, progress: Progress | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Pictures of a finished run: for each file the titled grids in it, uint8 0 .. 255, from n test images."""
        raise NotImplementedError


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, clip: float = math.inf, what: str = "loss") -> float:
    """Step down the gradient of a scalar loss; returns the gradient's norm before it is clipped to ``clip``.

    Only the optimiser's own parameters get a gradient, whatever else the loss was computed from.

    Raises:
        NotFiniteError: the loss, called ``what``, or the norm is not finite; nothing has been changed.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise NotFiniteError(what, value)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.zero_grad()
    loss.backward(inputs=parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if not math.isfinite(norm.item()):
        raise NotFiniteError("gradient's norm", norm.item())
    if norm.item() > clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    optimizer.step()
    return norm.item()


def refuse(name: str, value: object, family: str) -> None:
    """Raise a GenkernelsError where an option is given that the family has no use for."""
    if value is not None:
        raise GenkernelsError(f"{name}: {family} takes none; got {value}")
