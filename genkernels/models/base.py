"""The base class of all families."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class GenerativeModel(nn.Module):
    """Base class of every family.

    Attributes:
        config: the constructor's arguments, as plain values: ``type(model)(**model.config)`` builds a twin.
        in_channels: colours of an image, 1 or 3 as a rule.
        image_size: height and width of the images that the model draws (for most families also of those it takes).
    """

    config: dict[str, Any]
    in_channels: int
    image_size: tuple[int, int]

    def reset_parameters(self) -> None:
        """Gives the model the random weights and the statistics of a new one, in place.

        A model that was built on the meta device has neither: ``model.to_empty(device=...)`` and this make it whole.
        """
        for child in self.children():
            child.apply(_reset)  # a layer's parts first, since some layers have weights of their own for them
        self._initialise()

    def _initialise(self) -> None:
        """Sets those weights of a new model that its layers do not set themselves. For subclasses."""

    def check_images(self, x: Tensor) -> None:
        """Raise a ValueError unless x is [N, in_channels, H, W] of the model's size."""
        expected = [self.in_channels, *self.image_size]
        if x.dim() != 4 or list(x.shape[1:]) != expected:
            shape = ", ".join(map(str, expected))
            raise ValueError(f"x: expected [N, {shape}]; got shape {list(x.shape)}")


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in evaluation mode; then in the mode in which it was."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
