"""Models written with plain torch layers before and after ``genkernels.accelerate``, on the CPU.

    python -m bench.accelerate [--quick] [--seconds S] [--json PLACE]
    pytest bench/accelerate.py --benchmark-only

A training step of a 64 x 64 DCGAN (both networks, Adam included) and of a PixelCNN of eight 7 x 7 masked convolutions
that write zeros into their weights, with batch norm between; and sampling from the latter. Losses and samples are
compared before anything is timed. Takes some four minutes on two cores, compiling included.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genkernels
from bench.core.checks import MismatchError
from bench.core.report import Claim, Report, Row
from bench.core.session import CPU, Budget, Session, command_line
from genkernels.ops.conv_bn_act.heuristics import always_kernel
from genkernels.timing import summarise
from genkernels.train.plain_pixelcnn import PlainMaskedConv2d

PLAIN, OURS, COMPILED, OURS_COMPILED = "plain PyTorch", "accelerated", "torch.compile", "accelerated, torch.compile"
FIRST_STEPS, LOSS_TOLERANCE = 1, 1e-4
LOOP_PIXELS = 16  # of the plain sampling loop, each a forward pass of the whole image; the rest is extrapolated
SAMPLING = "sampling"
DCGAN_BATCH, PIXELCNN_BATCH, SIZE, LEVELS = 16, 16, 28, 256


class WritesItsWeight(PlainMaskedConv2d):
    """The most usual of public masked convolutions; a user's class, since accelerate() takes no class of genkernels."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return F.conv2d(x, self.weight, self.bias, padding=self.padding)


def deep_pixelcnn(channels: int = 64, layers: int = 8) -> nn.Sequential:
    """Eight 7 x 7 masked convolutions with batch norm and ReLU, then 1 x 1 to the levels."""
    parts: list[nn.Module] = []
    for index in range(layers):
        kind, inputs = ("B", channels) if index else ("A", 1)
        conv = WritesItsWeight(kind, inputs, channels, 7, padding=3, bias=False)
        parts += [conv, nn.BatchNorm2d(channels), nn.ReLU(True)]
    return nn.Sequential(*parts, nn.Conv2d(channels, LEVELS, 1))


def plain_dcgan(width: int = 64, latent: int = 100) -> nn.ModuleList:
    """Generator and discriminator of 64 x 64 images, each one Sequential."""
    generator: list[nn.Module] = []
    sizes = [latent, width * 8, width * 4, width * 2, width]
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        stride, padding = (2, 1) if index else (1, 0)
        generator += [nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False)]
        generator += [nn.BatchNorm2d(outputs), nn.ReLU(True)]
    generator += [nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh()]
    critic: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for inputs in (width, width * 2, width * 4):
        critic += [nn.Conv2d(inputs, inputs * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(inputs * 2)]
        critic += [nn.LeakyReLU(0.2, inplace=True)]
    critic += [nn.Conv2d(width * 8, 1, 4, 1, 0, bias=False)]
    model = nn.ModuleList([nn.Sequential(*generator), nn.Sequential(*critic)])
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
    return model


class GanTrainer:
    """The non-saturating step: real and fake in separate batches, then the generator."""

    def __init__(self, model: nn.ModuleList, compiled: bool) -> None:
        self.networks = [torch.compile(network, dynamic=False) if compiled else network for network in model]
        self.adams = [torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999)) for network in model]
        self.random = torch.Generator().manual_seed(0)
        self.dtype = next(model.parameters()).dtype
        self.images = (torch.rand(DCGAN_BATCH, 3, 64, 64, generator=self.random) * 2 - 1).to(self.dtype)

    def reverse(self) -> None:
        """The same batch in another order."""
        self.images = self.images.flip(0)

    def step(self) -> float:
        generator, critic = self.networks
        ones, zeros = self.images.new_ones(DCGAN_BATCH), self.images.new_zeros(DCGAN_BATCH)
        fake = generator(torch.randn(DCGAN_BATCH, 100, 1, 1, generator=self.random).to(self.dtype))
        self.adams[1].zero_grad()
        real_loss = F.binary_cross_entropy_with_logits(critic(self.images).flatten(), ones)
        fake_loss = F.binary_cross_entropy_with_logits(critic(fake.detach()).flatten(), zeros)
        (real_loss + fake_loss).backward()
        self.adams[1].step()
        self.adams[0].zero_grad()
        loss = F.binary_cross_entropy_with_logits(critic(fake).flatten(), ones)
        loss.backward()
        self.adams[0].step()
        return (real_loss + fake_loss + loss).item()


class PixelTrainer:
    def __init__(self, model: nn.Module, compiled: bool) -> None:
        self.model = torch.compile(model, dynamic=False, fullgraph=True) if compiled else model
        self.adam = torch.optim.Adam(model.parameters(), 1e-4)
        random = torch.Generator().manual_seed(0)
        self.levels = torch.randint(0, LEVELS, (PIXELCNN_BATCH, 1, SIZE, SIZE), generator=random)
        self.images = self.levels.to(next(model.parameters()).dtype) / (LEVELS - 1)

    def reverse(self) -> None:
        """The same batch in another order."""
        self.images, self.levels = self.images.flip(0), self.levels.flip(0)

    def step(self) -> float:
        self.adam.zero_grad()
        loss = F.cross_entropy(self.model(self.images), self.levels[:, 0])
        loss.backward()
        self.adam.step()
        return loss.item()


# How it is made and trained, the alternatives, the steps whose losses are compared, and the speed-up aimed at.
CASES: dict[str, tuple[Callable[..., Any], Any, tuple[str, ...], int, float]] = {
    f"DCGAN, 64x64, batch {DCGAN_BATCH}": (plain_dcgan, GanTrainer, (PLAIN, OURS, COMPILED, OURS_COMPILED), 20, 1.5),
    # Plain, it does not compile in one graph.
    f"PixelCNN, eight 7x7, 64 channels, batch {PIXELCNN_BATCH}, {SIZE}²": (
        deep_pixelcnn, PixelTrainer, (PLAIN, OURS, OURS_COMPILED), 3, 1.7,
    ),
}  # fmt: skip


def trainers(case: str) -> dict[str, Any]:
    """The alternatives, from the same weights."""
    make, trainer, names, *_ = CASES[case]
    torch.manual_seed(0)
    model, built = make(), {}
    for name in names:
        own = copy.deepcopy(model)
        if name.startswith(OURS):
            genkernels.accelerate(own)
        built[name] = trainer(own, COMPILED in name)
    return built


def furthest(losses: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))


def difference_in_float64(case: str, steps: int) -> float:
    """Of the losses, accelerated against plain: what is left where rounding hides nothing. A quarter of the width."""
    make, trainer, *_ = CASES[case]
    torch.manual_seed(0)
    plain = make(16).double()
    ours = copy.deepcopy(plain)
    genkernels.accelerate(ours)
    built = trainer(plain, False), trainer(ours, False)
    with always_kernel():
        losses = [[one.step() for _ in range(steps)] for one in built]
    return furthest(losses[1], losses[0])


def check_losses(case: str, built: Mapping[str, Any], steps: int) -> list[Claim]:
    """Losses of all alternatives against the plain model's, before anything is timed; a MismatchError on a difference.

    Adam divides by the size of the gradient, so that what is rounding in a small gradient becomes a step of full size:
    in float32 the losses of a GAN drift apart whenever sums are taken in another order, by 1e-2 after some ten steps.
    Held are 1e-4 over all steps in float64, where rounding hides nothing; in float32 1e-4 in the first step for every
    alternative, and over all steps four times what the plain model differs from itself by when its batch comes in
    another order or its weights lie channels_last. Printed and claimed is also what is not held.
    """
    exact = difference_in_float64(case, steps)
    if not exact <= LOSS_TOLERANCE:
        raise MismatchError(f"{case}: losses differ by {exact:.1e} in {steps} steps in float64")
    make, trainer, *_ = CASES[case]
    torch.manual_seed(0)
    model = make()
    others = {f"{PLAIN}, batch reversed": trainer(copy.deepcopy(model), False)}
    others[f"{PLAIN}, channels_last"] = trainer(model.to(memory_format=torch.channels_last), False)
    others[f"{PLAIN}, batch reversed"].reverse()
    expected = [built[PLAIN].step() for _ in range(steps)]
    print(f"{case}: losses differ from those of {PLAIN} over {steps} steps by at most: float64 {exact:.1e}; float32:")
    own = all_steps = 0.0
    for name, one in others.items():
        losses = [one.step() for _ in range(steps)]
        whole, close = furthest(losses, expected), held_for(losses, expected)
        own = max(own, whole)
        print(f"  {name} {whole:.1e}, {close} steps within {LOSS_TOLERANCE:g}")
    for name, one in built.items():
        if name == PLAIN:
            continue
        count = steps if name == OURS else FIRST_STEPS
        losses = [one.step() for _ in range(count)]
        first, whole = (furthest(losses[:n], expected[:n]) for n in (min(FIRST_STEPS, count), count))
        within = f", {held_for(losses, expected)} steps within {LOSS_TOLERANCE:g}" if count == steps else ""
        print(f"  {name} {whole:.1e} in {count} steps{within}, {first:.1e} in the first {FIRST_STEPS}")
        if not (first <= LOSS_TOLERANCE and whole <= max(LOSS_TOLERANCE, 4 * own)):
            raise MismatchError(f"{case}: the losses of {name!r} differ by {first:.1e} at first, {whole:.1e} over all")
        all_steps = whole if name == OURS else all_steps
    text = f"{case}: decimal digits that all {steps} losses share with {PLAIN}"
    return [
        Claim(f"{text}, float64", digits(exact), "", digits(LOSS_TOLERANCE)),
        Claim(f"{text}, float32", digits(all_steps), "", digits(LOSS_TOLERANCE)),
        Claim(f"{text}, float32, {PLAIN} itself in another order", digits(own), ""),
    ]


def held_for(losses: Sequence[float], expected: Sequence[float]) -> int:
    """The number of steps before the first whose loss differs by more than the tolerance."""
    close = [abs(a - b) <= LOSS_TOLERANCE * abs(b) for a, b in zip(losses, expected, strict=True)]
    return [*close, False].index(False)


def digits(difference: float) -> float:
    return -math.log10(max(difference, 1e-16))


def sampling(quick: bool) -> Row:
    """One image batch by the first pixels of the model's own loop, and by the sampler; compared."""
    torch.manual_seed(0)
    side = 6 if quick else SIZE
    model = deep_pixelcnn().eval()
    uniforms = torch.rand(PIXELCNN_BATCH, 1, side, side, dtype=torch.float64)
    places = [(pixel // side, pixel % side) for pixel in range(LOOP_PIXELS)]
    drawn_so_far = slice(None), 0, *zip(*places, strict=True)

    @torch.no_grad()
    def loop() -> Tensor:
        images = torch.zeros(PIXELCNN_BATCH, 1, side, side)
        for row, column in places:
            logits = model(images / (LEVELS - 1))[:, :, row, column]
            cdf = logits.double().softmax(1).cumsum(1)
            drawn = (cdf <= uniforms[:, 0, row, column, None]).sum(1).clamp(max=LEVELS - 1)
            images[:, 0, row, column] = drawn.float()
        return images

    fast = copy.deepcopy(model)
    genkernels.accelerate(fast)
    sampler = genkernels.fast_sampler(fast, levels=LEVELS, in_channels=1)
    start = time.perf_counter()
    expected = loop()
    plain_seconds = (time.perf_counter() - start) / LOOP_PIXELS * side * side
    got = sampler.sample(PIXELCNN_BATCH, side, uniforms=uniforms)
    equal = (got[drawn_so_far] == expected[drawn_so_far]).double().mean().item()
    if equal < 0.99:  # a uniform on the edge of two levels may fall either way, and what follows with it
        raise MismatchError(f"only {equal:.1%} of the sampled levels are the loop's")
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        sampler.sample(PIXELCNN_BATCH, side, uniforms=uniforms)
        seconds.append(time.perf_counter() - start)
    timings = {OURS: summarise(seconds, 1), PLAIN: summarise([plain_seconds], 1)}
    return Row("sampling", f"PixelCNN, eight 7x7, batch {PIXELCNN_BATCH}, {side}²", timings, (OURS,), PLAIN)


def measure(session: Session, case: str, claims: list[Claim]) -> list[Row]:
    """Compare, then time, the training steps of one model, or the sampling; notes what follows in ``claims``."""
    if case == SAMPLING:
        row = sampling(session.quick)
        claims.append(Claim(f"{row.case}: sampling, over its own loop", row.speed_up(PLAIN), "×", 200.0))
        return [row]
    _, _, names, steps, target = CASES[case]
    built = trainers(case)
    claims += check_losses(case, built, 2 if session.quick else steps)
    timings = session.time({name: trainer.step for name, trainer in built.items()})
    row = Row("training step, Adam included", case, timings, tuple(n for n in names if n.startswith(OURS)), PLAIN)
    claims.append(Claim(f"{case}: a training step, over {PLAIN}", row.speed_up(PLAIN), "×", target))
    return [row]


def run(session: Session) -> Report:
    """Measure everything."""
    torch.set_num_threads(2)
    claims: list[Claim] = []
    measured = session.over([*CASES, SAMPLING], partial(measure, claims=claims))
    title = "genkernels.accelerate on models of plain torch layers, float32"
    return session.report("accelerate", title, [row for (row,) in measured.values()], claims)


@pytest.mark.parametrize("name", [PLAIN, OURS])
@pytest.mark.parametrize("case", list(CASES))
def test_training_step(benchmark: Any, case: str, name: str) -> None:
    trainer = trainers(case)[name]
    benchmark.group = case
    benchmark.pedantic(trainer.step, rounds=3, warmup_rounds=1)


if __name__ == "__main__":
    budget = Budget(8.0, rounds=5, quick_seconds=1.0)
    command_line(run, "bench.accelerate", {"cpu": (CPU, budget)})
