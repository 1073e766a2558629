"""A training step of the small PixelCNN: ours against its plain PyTorch twin, eager and compiled, on the CPU.

    python -m bench.pixelcnn [--quick] [--seconds S] [--json PLACE]
    pytest bench/pixelcnn.py --benchmark-only [-k NAME]

The step is the forward pass, the loss, the backward pass and an Adam step. All alternatives start from the
same weights, and their losses and gradients are checked against the twin in float64 before anything is timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.core.alternatives import LAST, NHWC, to_layout
from bench.core.checks import check_equal
from bench.core.report import Claim, Report, Row
from bench.core.roofline import Work
from bench.core.session import CPU, Budget, Session, command_line
from bench.masked_conv_baselines import masked_conv_work
from genkernels.models import PixelCNN
from genkernels.nn import MaskedConv2d
from genkernels.ops.masked_conv.mask import MaskSpec
from genkernels.train.plain_pixelcnn import PlainPixelCNN

BATCH, SIZE = 16, 28
EAGER, COMPILED = "plain PyTorch", "torch.compile"
# Ours has no channels_last form here: after an image of one channel all layers are contiguous.
OURS = ("ours", "ours, torch.compile")
NAMES = (*OURS, EAGER, f"{EAGER}, channels_last", COMPILED, f"{COMPILED}, channels_last")
TARGET = 1.8
TOLERANCE = 1e-3  # float32 against float64 after nine layers, where a ReLU near zero may fall either way


class Trainer:
    """One alternative: a model of its own, its loss in mean nats per sub-pixel, and Adam."""

    def __init__(self, name: str, model: PixelCNN, images: Tensor) -> None:
        if name in OURS:
            self.model: nn.Module = copy.deepcopy(model)
            log_prob, dims = self.model.log_prob, images[0].numel()

            def loss(x: Tensor) -> Tensor:
                return -log_prob(x).mean() / dims

        else:
            twin = PlainPixelCNN(model)
            self.model, loss = twin, twin.loss
        if name.endswith(LAST):
            self.model.to(memory_format=NHWC)  # type: ignore[call-overload]
            images = to_layout(images, NHWC)
        if COMPILED in name:
            loss = torch.compile(loss, dynamic=False, fullgraph=True)
        self.loss: Callable[[Tensor], Tensor] = loss
        self.images = images
        self.adam = torch.optim.Adam(self.model.parameters(), lr=1e-4)

    def step(self) -> None:
        self.adam.zero_grad()
        self.loss(self.images).backward()
        self.adam.step()

    def results(self) -> list[Tensor]:
        """The loss, and its gradients in the order of the layers."""
        loss = self.loss(self.images)
        return [loss, *torch.autograd.grad(loss, list(self.model.parameters()))]


def problem() -> tuple[PixelCNN, Tensor]:
    """The model with 64 hidden channels, 7 layers and 256 levels, and a batch of random images."""
    torch.manual_seed(0)
    model = PixelCNN(in_channels=1, hidden_channels=64, num_layers=7, levels=256)
    return model, torch.randint(0, 256, (BATCH, 1, SIZE, SIZE), dtype=torch.uint8)


def reference(model: PixelCNN, images: Tensor) -> list[Tensor]:
    """The loss and the gradients of the plain twin in float64."""
    twin = PlainPixelCNN(model).double()
    logits = twin.net(images.double() / (model.levels - 1))
    loss = F.cross_entropy(logits, images[:, 0].long())
    return [loss.detach(), *torch.autograd.grad(loss, list(twin.parameters()))]


def trainers(model: PixelCNN, images: Tensor, names: Iterable[str] = NAMES) -> dict[str, Trainer]:
    """The named alternatives, checked."""
    built = {name: Trainer(name, model, images) for name in names}
    results = {name: trainer.results() for name, trainer in built.items()}
    check_equal(results, reference(model, images), tolerance=TOLERANCE)
    return built


def step_work(model: PixelCNN) -> Work:
    """The work of the convolutions, one after the other; loss and optimiser are left out."""
    total = Work(0, 0)
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, MaskedConv2d)
        kernel = (layer.kernel_size[0], layer.kernel_size[1])
        spec = MaskSpec(layer.out_channels, layer.in_channels, kernel, layer.mask_type, 1, "blocks")
        total += masked_conv_work(spec, BATCH, SIZE, SIZE, backward=True, input_grad=index > 0)
    return total


def measure(session: Session, case: str) -> list[Row]:
    """Check, then time, one training step of every alternative."""
    model, images = problem()
    calls = {name: trainer.step for name, trainer in trainers(model, images).items()}
    group = "training step: forward, loss, backward, Adam"
    return [Row(group, case, session.time(calls), OURS, EAGER, step_work(model))]


def run(session: Session) -> Report:
    """Measure everything."""
    case = f"PixelCNN, 64 channels, 7 layers, 256 levels; {BATCH} images, {SIZE}²"
    (row,) = session.over([case], measure)[case]
    claims = [
        Claim(f"training step: {OURS[0]}, over {EAGER}", row.speed_up(EAGER), "×", TARGET),
        Claim(f"training step: {OURS[0]}, over {COMPILED}", row.speed_up(COMPILED), "×", TARGET),
        Claim(f"training step: {OURS[0]}, over the best", row.speed_up(row.best_other()), "×"),
        Claim(f"training step: {OURS[1]}, over {COMPILED}", row.speed_up(COMPILED, OURS[1]), "×"),
    ]
    return session.report("pixelcnn", "Training the small PixelCNN, float32", [row], claims)


@pytest.mark.parametrize("name", NAMES)
def test_training_step(benchmark: Any, name: str) -> None:
    trainer = trainers(*problem(), [name])[name]
    benchmark.group = "training step"
    benchmark(trainer.step)


if __name__ == "__main__":
    budget = Budget(30.0, rounds=21, quick_seconds=1.0)
    command_line(run, "bench.pixelcnn", {"cpu": (CPU, budget)})
