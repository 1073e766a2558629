"""A few steps on real images lower the nats of real images that were not trained on.

The digits need no file. For MNIST set GENKERNELS_DATA to a folder that holds its four files in ``mnist/``.
"""

import os
from pathlib import Path

import pytest
import torch

from genkernels.models import PixelCNN
from genkernels.train.data.sources import open_dataset, quantise
from genkernels.train.metrics import evaluate

pytest.importorskip("sklearn", reason="the embedded digits need the extra 'cli'")


def nats_before_and_after(spec: str, levels: int, batch_size: int, steps: int, learning_rate: float):
    dataset = open_dataset(spec)
    train, test = quantise(dataset.train, levels), quantise(dataset.test, levels)[:100]
    torch.manual_seed(0)
    model = PixelCNN(1, 16, 3, levels)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    before = evaluate(model, test).nats
    for batch in train[: batch_size * steps].split(batch_size):
        optimizer.zero_grad()
        (-model.log_prob(batch).mean() / test[0].numel()).backward()
        optimizer.step()
    return before, evaluate(model, test).nats


def test_a_few_steps_on_real_digits_lower_the_nats_of_unseen_ones():
    before, after = nats_before_and_after("digits", levels=17, batch_size=32, steps=40, learning_rate=0.01)
    assert before == pytest.approx(64 * 2.83, rel=0.1)  # at first no better than guessing: 64 ln 17
    assert after < 0.7 * before


def test_a_few_steps_on_real_mnist_lower_the_nats_of_unseen_digits():
    folder = os.environ.get("GENKERNELS_DATA")
    if folder is None:
        pytest.skip("GENKERNELS_DATA is not set: set it to a folder that holds MNIST's four files in mnist/")
    before, after = nats_before_and_after(
        f"mnist:{Path(folder) / 'mnist'}", levels=2, batch_size=16, steps=40, learning_rate=0.01
    )
    assert before == pytest.approx(784 * 0.693, rel=0.1)
    assert after < 0.5 * before
