"""Comparison of our PixelCNN with its twin in plain PyTorch: results first, then times on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models import PixelCNN
from ..timing import interleave
from .plain_pixelcnn import PlainPixelCNN


@dataclass(frozen=True)
class Comparison:
    """Median seconds of one piece of work, ours and plain, over ``rounds`` interleaved rounds."""

    what: str
    ours: float
    plain: float
    rounds: int

    @property
    def speedup(self) -> float:
        """Above 1 where ours is faster."""
        return self.plain / self.ours


def largest_difference(model: PixelCNN, plain: PlainPixelCNN, images: Tensor) -> float:
    """How far apart the twins are on levels [N, 1, H, W]: in the logits and in all gradients.

    Each difference is a share of the tensor's norm; the largest of them is returned. Where rounding decides on which
    side of a ReLU an element falls, gradients differ by more: hardly in each of several groups of images, though, and
    a fault would show in all. So the smallest of four groups' counts.
    """
    groups = images.chunk(4)
    return min(_difference_over(model, plain, group) for group in groups)


def _difference_over(model: PixelCNN, plain: PlainPixelCNN, images: Tensor) -> float:
    ours, theirs = list(model.parameters()), list(plain.parameters())
    nats = -model.log_prob(images).mean() / images[0].numel()
    with torch.no_grad():
        pairs = [(model(images)[:, :, 0], plain(images))]
    gradients = torch.autograd.grad(nats, ours), torch.autograd.grad(plain.loss(images), theirs)
    pairs += list(zip(*gradients, strict=True))
    return max(((a - b).norm() / b.norm().clamp_min(1e-30)).item() for a, b in pairs)


def compare_with_plain(
    model: PixelCNN, images: Tensor, *, samples: int = 16, rounds: int = 9, budget: float = 5.0
) -> list[Comparison]:
    """Training steps and sampling, ours against :class:`PlainPixelCNN` with the same weights.

    Args:
        model: grey, without residual blocks, float32, on the CPU. Its weights stay as they are.
        images: one training batch of levels, uint8 [N, 1, H, W].
        samples: images to draw; plain PyTorch does it with one full forward pass per pixel.
        rounds, budget: of each piece of work so many rounds are timed, or at least three and ``budget`` seconds long.

    Raises:
        RuntimeError: the twins differ by more than float32 rounding explains.
    """
    plain = PlainPixelCNN(model)
    difference = largest_difference(model, plain, images)
    if not difference < 5e-3:
        raise RuntimeError(f"the plain twin computes something else: off by {difference:.2g}")
    height, width = images.shape[2:]
    work: dict[str, dict[str, Callable[[], object]]] = {
        f"train step, {len(images)} images": {
            "ours": _training_step(model, lambda: -model.log_prob(images).mean()),
            "plain": _training_step(plain, lambda: plain.loss(images)),
        },
        f"sampling, {samples} images": {
            "ours": lambda: model.sample(samples, size=(height, width)),
            "plain": lambda: plain.sample(samples, height, width),
        },
    }
    rows = []
    for what, candidates in work.items():
        timings = interleave(
            candidates, seconds=budget, min_rounds=min(3, rounds), max_rounds=rounds, min_turn=0.0, warm_up=1
        )
        ours, theirs = timings["ours"], timings["plain"]
        rows.append(Comparison(what, ours.median, theirs.median, ours.rounds))
    model.zero_grad()
    return rows


def _training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, backward and an Adam step with learning rate 0: all the work, but the weights stay."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step
