"""Proof of a sampler before its first use: its program is compared with the model on random images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distributions import Categorical, Distribution
from ..ops.core.torch_internals import tree_map
from .executors.registry import teacher_forced
from .sample import in_evaluation
from .sampler import FastSampler, Verification

MOST_CHANGES = 256  # sub-pixels that are changed in turn; of larger images some


@torch.no_grad()
def verify(sampler: FastSampler, images: Tensor, condition: Any) -> Verification:
    """Compares a sampler's program with its model on images, levels [n, C, H, W], and changes their sub-pixels in turn.

    Raises:
        ValueError: the model is not causal, or the program computes something else; with what was found.
    """
    distribution = sampler.distribution
    n, colours, height, width = images.shape
    program = sampler.compile(n, (height, width), condition)
    table = sampler.table()
    with in_evaluation(sampler.model):
        expected = sampler.logits(images, condition)
    _check_no_probabilities(distribution, expected)
    got = teacher_forced(program, images)
    wrong = (~distribution.is_sound(expected.flatten(2).transpose(1, 2).flatten(0, 1))).nonzero()
    if len(wrong):
        where = (n, distribution.predictions, height, width)
        image, channel, row, column = np.unravel_index(int(wrong[0]), where)
        raise distribution.unsound(int(image), int(channel), int(row), int(column))
    error, scale = float(_distance(got, expected).max()), float(expected[expected.isfinite()].abs().max())
    limit = 2e3 * torch.finfo(table.dtype).eps * max(scale, 1)
    if not error <= limit:
        raise ValueError(f"model: the logits of its sampling program differ by {error:.3g}; allowed are {limit:.3g}")

    order = torch.arange(height * width * colours, device=images.device)
    order = order.view(height, width, colours).permute(2, 0, 1)  # sub-pixels in drawing order
    first = order[: distribution.predictions]  # that a prediction is for
    places = torch.linspace(0, order.numel() - 1, min(order.numel(), MOST_CHANGES), device=images.device).long()
    pairs = 0
    for part in places.split(max(1, 64 // n)):  # image by image of a part, one sub-pixel of all n is changed
        here, not_after = order == part[:, None, None, None], first <= part[:, None, None, None]
        shifted = (images.long() + 1 + sampler.levels // 2) % sampler.levels
        changed = torch.where(here[:, None], shifted, images.long()).flatten(0, 1)
        with in_evaluation(sampler.model):
            logits = sampler.logits(changed, _repeated(condition, n, len(part)))
        moved = _distance(logits.unflatten(0, (-1, n)), expected).amax(2).transpose(0, 1)[:, not_after]
        pairs += moved.numel()
        if not float(moved.max()) <= limit:
            raise ValueError(
                "model: not causal, changing a sub-pixel moves the logits at it or before it by "
                f"{float(moved.max()):.3g}"
            )
    return Verification(((height, width),), pairs, error, scale)


def _check_no_probabilities(distribution: Distribution, logits: Tensor) -> None:
    """Raise a ValueError where the softmax has been taken already."""
    if not isinstance(distribution, Categorical) or distribution.outputs == 1:
        return
    if bool((logits >= 0).all()) and bool((logits.double().sum(1) - 1).abs().max() < 1e-3):
        raise ValueError(
            "model: expected logits or log-probabilities; got numbers that sum to 1, which looks like "
            "probabilities: leave out the softmax, or return its logarithm"
        )


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|, and 0 where both are the same infinity."""
    return torch.where(a == b, 0, a - b).abs()


def _repeated(condition: Any, n: int, times: int) -> Any:
    """The condition of n images for ``times`` as many."""
    return tree_map(
        lambda t: t.repeat(times, *[1] * (t.dim() - 1)) if isinstance(t, Tensor) and t.shape[:1] == (n,) else t,
        condition,
    )
