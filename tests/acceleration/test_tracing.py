"""``genkernels.accelerate`` on forwards that do more than they compute, and on changes of what steers a forward."""

import random

import pytest
import torch
import torch.nn.functional as F
from helpers.accelerated import assert_same, pair, step
from torch import nn
from torch.utils.checkpoint import checkpoint

import genkernels

pytestmark = pytest.mark.usefixtures("seeded")

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


class Body(nn.Module):
    """A forward that torch.fx can follow, once ``forward`` is written."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def body(self, x):
        return F.relu(self.norm(self.conv(x)))


class KeepsItsResult(Body):
    def forward(self, x):
        self.features = self.body(x)
        return self.features


class KeepsALog(Body):
    def __init__(self):
        super().__init__()
        self.log = []

    def forward(self, x):
        self.log.append(x.shape)
        return self.body(x)


class Counts(Body):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.body(x)


class DropsItself(Body):
    def forward(self, x):
        return x if self.training and random.random() < 0.1 else x + self.body(x)


class SwitchesAutocastOff(Body):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.body(x)


class SwitchesGradientsOff(Body):
    def forward(self, x):
        with torch.no_grad():
            return self.body(x)


class Checkpoints(Body):
    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False)


class ReadsAnObject(Body):
    def __init__(self):
        super().__init__()
        self.options = type("Options", (), {"skip": True})()

    def forward(self, x):
        return self.body(x) + x if self.options.skip else self.body(x)


LEFT = {
    "keeps its result": (KeepsItsResult, "changes its attributes"),
    "keeps a log": (KeepsALog, "changes its attributes"),
    "counts in a buffer": (Counts, "changes its attributes"),
    "stochastic depth": (DropsItself, "draws random numbers"),
    "autocast inside": (SwitchesAutocastOff, "switches gradients, autocast or checkpointing"),
    "no_grad inside": (SwitchesGradientsOff, "switches gradients, autocast or checkpointing"),
    "checkpointing": (Checkpoints, "switches gradients, autocast or checkpointing"),
    "reads an object": (ReadsAnObject, "reads options, whose changes would go unnoticed"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_a_swap_would_lose_is_left_and_nothing_in_it_is_touched(name):
    make, reason = LEFT[name]
    model = make()
    before = [(dict(part.__dict__), dict(part._buffers)) for part in model.modules()]
    logged, state = list(getattr(model, "log", [])), random.getstate()
    report = genkernels.accelerate(model)
    assert not report.swapped, str(report)
    assert any(reason in entry.detail for entry in report.left), str(report)
    assert [(dict(part.__dict__), dict(part._buffers)) for part in model.modules()] == before
    assert list(getattr(model, "log", [])) == logged
    assert random.getstate() == state
    if name == "counts in a buffer":
        assert model.calls == 0


class Steered(Body):
    def __init__(self):
        super().__init__()
        self.settings, self._times = {"skip": True}, 1
        self.more = nn.ModuleList([nn.Conv2d(4, 4, 1)])
        self.last = nn.Tanh()

    def forward(self, x):
        y = self.body(x)
        for layer in self.more:
            y = layer(y)
        y = y + x if self.settings["skip"] else y
        y = y * self._times
        return y if self.last is None else self.last(y)


def grow(model):
    torch.manual_seed(5)
    model.more.append(nn.Conv2d(4, 4, 3, padding=1))


CHANGES = {
    "nothing": lambda model: None,
    "an entry of a dict": lambda model: model.settings.update(skip=False),
    "a number": lambda model: setattr(model, "_times", 3),
    "one more child": grow,
    "one child less": lambda model: setattr(model, "last", None),
    "another child": lambda model: setattr(model, "norm", nn.Identity()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_steers_a_forward_may_change_after_the_swap(change):
    plain, fast, _ = pair(Steered)
    for model in (plain, fast):
        CHANGES[change](model)
    assert_same(step(fast, X), step(plain, X))
