"""Descent of one loss: an optimiser, and the largest norm of the gradient that it follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import processes

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),  # one pass over memory where the default makes ten
    "adamw": partial(torch.optim.AdamW, fused=True),
    "rmsprop": torch.optim.RMSprop,
    "sgd": partial(torch.optim.SGD, momentum=0.9, fused=True),
}
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


class NotFiniteError(ArithmeticError):
    """A loss or a gradient is infinite or NaN; the weights are as they were before it."""

    def __init__(self, what: str, value: float) -> None:
        super().__init__(f"the {what} became {value}")


class Descended(NamedTuple):
    """The loss before a step, and the norm of its gradient before it was clipped."""

    loss: float
    norm: float


class Descent:
    """Steps of one optimiser down the gradient of one loss.

    Args:
        optimizer: holds the parameters that move; nothing else gets a gradient, whatever the loss is computed from.
        clip: the largest norm of the gradient; a larger one is scaled down to it.
        factor: of the learning rate, by step.
        history: weight of |theta - mean of its past|² in the loss, theta being the parameters at each step so far
            (Salimans et al. 2016, "Improved Techniques for Training GANs", section 3.3).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clip: float = math.inf,
        factor: Callable[[int], float] = lambda step: 1.0,
        history: float = 0.0,
    ) -> None:
        self.optimizer, self.clip, self.history = optimizer, clip, history
        self.means = [p.detach().clone() for p in self.parameters] if history else []
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def step(self, losses: Iterable[Tensor], what: str = "loss") -> Descended:
        """One step down the sum of scalar losses, which is over all processes.

        Each is asked for after the gradient of the one before it was computed, and its graph freed: the parts of a
        large batch are in memory one at a time.

        Raises:
            NotFiniteError: the loss, called ``what``, or the norm is not finite; no weight has been changed.
        """
        parameters, total = self.parameters, 0.0
        self.optimizer.zero_grad()
        for loss in losses:
            total += loss.item()
            with torch.autocast(loss.device.type, enabled=False):  # gradients have the dtypes that forward gave them
                loss.backward(inputs=parameters)
        (total,) = processes.total(total)  # a number that is not finite is seen by all processes
        if not math.isfinite(total):
            raise NotFiniteError(what, total)
        gradients = [p.grad for p in parameters if p.grad is not None]
        processes.add_gradients(gradients)
        total += self._add_history()
        norm = nn.utils.get_total_norm(gradients)
        if not math.isfinite(norm.item()):
            raise NotFiniteError("gradient's norm", norm.item())
        if norm.item() > self.clip:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        self.optimizer.step()
        self.scheduler.step()
        return Descended(total, norm.item())

    @torch.no_grad()
    def _add_history(self) -> float:
        """The history's part of the loss; its gradient is added to that of the rest."""
        loss, steps = 0.0, self.scheduler.last_epoch
        for parameter, mean in zip(self.parameters, self.means, strict=False):
            mean.lerp_(parameter, 1 / (steps + 1))
            away = parameter - mean
            loss += self.history * away.square().sum().item()
            if parameter.grad is not None:
                parameter.grad.add_(away, alpha=2 * self.history)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "steps": self.scheduler.last_epoch, "means": self.means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.last_epoch = state["steps"]
        for mean, kept in zip(self.means, state["means"], strict=True):
            mean.copy_(kept)
