"""The benchmark of a DCGAN step: twins that agree before they are timed, and a count of operations that holds."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import dcgan
from bench.core.checks import MismatchError

NAMES = (*dcgan.OURS, *dcgan.PLAIN)


@pytest.fixture(scope="module")
def problem():
    return dcgan.problem(image_size=32, hidden_channels=4)


def test_the_twins_take_the_same_step_and_leave_the_weights(problem):
    for trainer in dcgan.trainers(*problem, NAMES).values():
        before = [[weight.clone() for weight in weights] for weights in trainer.parameters]
        trainer.step()
        for old, new in zip(before, trainer.parameters, strict=True):
            assert all(torch.equal(a, b) and b.grad is not None for a, b in zip(old, new, strict=True))


def test_a_twin_with_other_weights_is_noticed(problem, monkeypatch):
    monkeypatch.setitem(dcgan.ACTIVATIONS, "tanh", torch.nn.Sigmoid)
    with pytest.raises(MismatchError, match="ours, result 0"):  # the reference is a plain twin, too
        dcgan.trainers(*problem, ["ours"])


def test_the_work_is_what_pytorch_counts_in_the_plain_step():
    for size in (28, 32, 64):
        model, real, latents = dcgan.problem(image_size=size, hidden_channels=2)
        trainer = dcgan.Trainer(dcgan.EAGER, model, real, latents)
        with FlopCounterMode(display=False) as counter:
            trainer.step()
        assert dcgan.step_work(model).flops == counter.get_total_flops()
