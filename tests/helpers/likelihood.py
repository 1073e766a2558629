"""An exact likelihood, shown by counting: over every image there is, the probabilities sum to 1."""

import itertools

import pytest
import torch
from torch import Tensor

from genkernels.models import AutoregressiveModel


def every_image(levels: int, channels: int, height: int, width: int) -> Tensor:
    """All images of that size: uint8 [levels ** (channels * height * width), channels, height, width]."""
    values = itertools.product(range(levels), repeat=channels * height * width)
    return torch.tensor(list(values), dtype=torch.uint8).view(-1, channels, height, width)


def train_a_little(
    model: AutoregressiveModel, images: Tensor, condition: Tensor | None = None, *, steps: int = 30, lr: float = 0.02
) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (-model.log_prob(images, condition)).mean().backward()
        optimizer.step()


def assert_probabilities_sum_to_one(
    model: AutoregressiveModel, images: Tensor, condition: Tensor | None = None
) -> None:
    """Fresh, and after the model has learnt the first ten images: the sum is no accident.

    Args:
        model: made double here.
        images: every image there is.
        condition: a single one, [1, ...], for all of them.
    """
    model.double()
    everywhere = None if condition is None else condition.expand(len(images), *condition.shape[1:])
    assert model.log_prob(images, everywhere).exp().sum().item() == pytest.approx(1, abs=1e-12)
    train_a_little(model, images[:10], None if everywhere is None else everywhere[:10])
    after = model.log_prob(images, everywhere).exp()
    assert after.sum().item() == pytest.approx(1, abs=1e-12)
    assert after[:10].mean() > 1.5 * after.mean()


def assert_drawn_from_their_own_conditionals(
    model: AutoregressiveModel, n: int = 2, condition: Tensor | None = None, seed: int = 0
) -> None:
    """Each sub-pixel of a sample is what its uniform draws from the conditional that one forward pass gives."""
    shape = (n, model.in_channels, *model.image_size)
    uniforms = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    samples = model.sample(n, uniforms=uniforms, condition=condition)
    with torch.no_grad():
        logits = model(samples, condition)  # all conditionals at once, now that what is before each is known
    cdf = logits.double().softmax(1).cumsum(1)
    assert torch.equal((cdf <= uniforms.unsqueeze(1)).sum(1), samples.long())
