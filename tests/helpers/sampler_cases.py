"""Models with random weights that the sampler's tests go through, and a program's own rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genkernels import sampling
from genkernels.models import CausalAudioNet, GatedPixelCNN, PixelCNN, PixelRNN
from genkernels.sampling.executors import pytorch
from genkernels.sampling.executors.registry import run_of
from genkernels.sampling.program.program import Program
from genkernels.sampling.request import Request


@dataclass(frozen=True)
class Case:
    """A model, the size [C, H, W] of its images, and its number of classes."""

    make: Callable[[], Any]
    size: tuple[int, int, int]
    classes: int | None = None

    def model(self, dtype: torch.dtype = torch.float64) -> Any:
        """Random weights of a size at which every path shows, the same ones every time."""
        torch.manual_seed(0)
        model = self.make()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        return model.to(dtype).eval()

    def condition(self, n: int) -> Tensor | None:
        return None if self.classes is None else torch.arange(n) % self.classes


CASES = {
    "pixelcnn": Case(lambda: PixelCNN(1, 6, 2, 4), (1, 5, 6)),
    "pixelcnn colours": Case(lambda: PixelCNN(3, 7, 2, 4), (3, 6, 4)),
    "pixelcnn residual": Case(lambda: PixelCNN(2, 5, 2, 5, residual=True, head_channels=6), (2, 5, 4)),
    "row lstm": Case(lambda: PixelRNN(1, 4, 2, 4, recurrence="row", head_channels=5), (1, 5, 6)),
    "row lstm colours": Case(lambda: PixelRNN(3, 5, 1, 4, recurrence="row", head_channels=7), (3, 4, 5)),
    "diagonal lstm": Case(lambda: PixelRNN(1, 4, 2, 4, head_channels=5), (1, 5, 6)),
    "diagonal lstm colours": Case(lambda: PixelRNN(3, 5, 2, 4, head_channels=7), (3, 4, 5)),
    "diagonal lstm from zero": Case(lambda: PixelRNN(1, 4, 1, 4, head_channels=5, learned_state=False), (1, 4, 5)),
    "gated": Case(lambda: GatedPixelCNN(1, 5, 2, 4, head_channels=6), (1, 5, 6)),
    "gated colours classes": Case(
        lambda: GatedPixelCNN(3, 7, 2, 4, num_classes=3, head_channels=8), (3, 5, 4), classes=3
    ),
    "audio": Case(
        lambda: CausalAudioNet(5, 4, 4, 2, 3, skip_channels=6, num_classes=2, length=18), (1, 1, 18), classes=2
    ),
    "mixture": Case(lambda: PixelCNN(1, 6, 2, 4, distribution="logistic_mixture", mixtures=3), (1, 5, 6)),
    "mixture colours": Case(lambda: PixelCNN(3, 7, 2, 4, distribution="logistic_mixture", mixtures=2), (3, 6, 4)),
    "mixture gated classes": Case(
        lambda: GatedPixelCNN(2, 5, 2, 4, num_classes=3, head_channels=6, distribution="logistic_mixture", mixtures=1),
        (2, 5, 4),
        classes=3,
    ),
    "mixture row lstm": Case(
        lambda: PixelRNN(3, 5, 1, 4, recurrence="row", head_channels=7, distribution="logistic_mixture", mixtures=40),
        (3, 4, 5),
    ),
    "mixture diagonal lstm": Case(
        lambda: PixelRNN(3, 5, 1, 4, head_channels=7, distribution="logistic_mixture", mixtures=3), (3, 4, 5)
    ),
    "one pixel": Case(lambda: PixelCNN(3, 6, 1, 4), (3, 1, 1)),
}


def predict(model: Any, images: Tensor, condition: Tensor | None = None) -> Tensor:
    """What is drawn from, [n, channels, predictions, H, W], of images [n, C, H, W], whatever the model's own forward
    takes.
    """
    predicted = model.predict(model._scaled(images), condition)
    return predicted.unsqueeze(2) if predicted.dim() == 4 else predicted


def program_of(model: Any, n: int, size: tuple[int, int, int], condition: Tensor | None = None) -> Program:
    levels = torch.arange(model.levels, device=next(model.parameters()).device)
    return sampling.compile_program(
        model, model.predict, (n, *size), model._scaled(levels), condition, model.distribution
    )


def random_images(n: int, size: tuple[int, int, int], levels: int, seed: int = 0) -> Tensor:
    return torch.randint(0, levels, (n, *size), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def logits_from_poisoned_memory(program: Program, images: Tensor) -> Tensor:
    """As :func:`sampling.teacher_forced`, with NaN wherever a value is to be written: what is read too early shows."""
    request = Request(images.clone(), torch.ones_like(images, dtype=torch.bool), torch.zeros(images.shape), 1.0, None)
    run = run_of(request, slice(0, len(images)), lambda y: None)
    run.free = torch.zeros_like(run.free)
    channels, predictions = program.distribution.channels, program.distribution.predictions
    run.logits = program.table.new_zeros(len(images), channels, predictions, *images.shape[2:])
    execution = pytorch.Execution(program, run)
    for value, kept in zip(program.values, execution.maps, strict=True):
        if value.constant is None:
            columns = slice(value.columns[0] + kept.left, value.columns[1] + kept.left)
            kept.data[:, kept.top + value.first_row :, columns] = torch.nan
    execution.all_rows()
    return run.logits
