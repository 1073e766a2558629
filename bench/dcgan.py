"""A whole training step of DCGAN: ours against the same networks in plain PyTorch, eager and compiled, on the CPU.

    python -m bench.dcgan [--quick] [--no-compile] [--seconds S] [--json PLACE]
    pytest bench/dcgan.py --benchmark-only [-k NAME]

The step is the discriminator's (real and generated images, each in a pass of its own, backward, Adam) and then the
generator's (a third pass through the discriminator, backward, Adam). All alternatives take it through the same
function, with the same optimisers (Adam in one fused pass, the quickest that PyTorch has), from the same weights;
their learning rate is 0, which is all the work and leaves every step alike. Losses and gradients are checked against
plain PyTorch in float64 before anything is timed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core.alternatives import NHWC, to_layout
from bench.core.checks import check_equal
from bench.core.report import Claim, Report, Row
from bench.core.roofline import Work
from bench.core.session import CPU, Budget, Session, command_line
from genkernels.models import DCGAN
from genkernels.nn import ConvBnAct2d, ConvTransposeBnAct2d
from genkernels.train.objectives import adversarial_step
from genkernels.train.objectives.adversarial import BETAS
from genkernels.train.objectives.adversarial_losses import discriminator_loss, generator_loss
from genkernels.train.optimization import OPTIMIZERS, Descent

BATCH, SIZE, COLOURS = 16, 64, 3
EAGER, COMPILED = "plain PyTorch", "torch.compile"
OURS = ("ours", "ours, channels_last")
PLAIN = (EAGER, f"{EAGER}, channels_last")
COMPILED_NAMES = (COMPILED, f"{COMPILED}, channels_last")
TARGET = 1.6
LOSS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 2e-2  # float32 against float64 through ten layers, where a ReLU near zero may fall either way

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


def plain(network: nn.Sequential) -> nn.Sequential:
    """The network with torch.nn's layers in place of our blocks, with copies of their weights and statistics."""
    layers: list[nn.Module] = []
    for block in network:
        if not isinstance(block, (ConvBnAct2d, ConvTransposeBnAct2d)):
            layers.append(copy.deepcopy(block))
            continue
        kind = nn.Conv2d if isinstance(block, ConvBnAct2d) else nn.ConvTranspose2d
        conv = kind(
            block.in_channels, block.out_channels, block.kernel_size, block.stride, block.padding,
            bias=block.bias is not None,
        )  # fmt: skip
        conv.to(block.weight).load_state_dict(
            {name: value for name, value in block.state_dict().items() if not name.startswith("bn.")}
        )
        layers.append(conv)
        if block.bn is not None:
            layers.append(copy.deepcopy(block.bn))
        if block.activation == "leaky_relu":
            layers.append(nn.LeakyReLU(block.negative_slope))
        elif block.activation is not None:
            layers.append(ACTIVATIONS[block.activation]())
    return nn.Sequential(*layers)


class Trainer:
    """One alternative: networks of its own, an optimiser for each, and a fixed batch."""

    def __init__(self, name: str, model: DCGAN, real: Tensor, latents: Tensor) -> None:
        networks = [copy.deepcopy(network) for network in (model.generator, model.discriminator)]
        if name not in OURS:
            networks = [plain(network) for network in networks]
        if name.endswith("channels_last"):
            networks = [network.to(memory_format=NHWC) for network in networks]  # type: ignore[call-overload]
            real = to_layout(real, NHWC)
        self.parameters = [list(network.parameters()) for network in networks]
        self.descents = [Descent(OPTIMIZERS["adam"](parameters, lr=0.0, betas=BETAS)) for parameters in self.parameters]
        if COMPILED in name:
            networks = [torch.compile(network, dynamic=False, fullgraph=True) for network in networks]
        self.generator, self.discriminator = networks
        self.real, self.latents = real, latents

    def step(self) -> None:
        adversarial_step(self.generator, self.discriminator, self.real, self.latents, *self.descents)

    def losses(self) -> list[Tensor]:
        fake = self.generator(self.latents)
        judged = discriminator_loss(self.discriminator(self.real), self.discriminator(fake.detach()))
        return [judged, generator_loss(self.discriminator(fake))]

    def gradients(self) -> list[Tensor]:
        """Of either loss by the parameters of its own network, the discriminator's first."""
        judged, deceived = self.losses()
        generator, discriminator = self.parameters
        return [*torch.autograd.grad(judged, discriminator), *torch.autograd.grad(deceived, generator)]


def problem(image_size: int = SIZE, hidden_channels: int = 64) -> tuple[DCGAN, Tensor, Tensor]:
    """The usual model for 64 x 64 colour images, random images and latents."""
    torch.manual_seed(0)
    model = DCGAN(COLOURS, hidden_channels, image_size=image_size)
    return model, torch.rand(BATCH, COLOURS, image_size, image_size) * 2 - 1, model.draw_latents(BATCH)


def trainers(model: DCGAN, real: Tensor, latents: Tensor, names: Iterable[str]) -> dict[str, Trainer]:
    """The named alternatives, checked."""
    built = {name: Trainer(name, model, real, latents) for name in names}
    reference = Trainer(EAGER, copy.deepcopy(model).double(), real.double(), latents.double())
    for part, tolerance in (("losses", LOSS_TOLERANCE), ("gradients", GRADIENT_TOLERANCE)):
        results = {name: getattr(trainer, part)() for name, trainer in built.items()}
        check_equal(results, getattr(reference, part)(), tolerance=tolerance)
    return built


def convolution_work(layers: Iterable[nn.Module], height: int) -> list[Work]:
    """The work of each layer's forward pass on one image that is ``height`` high and wide."""
    works = []
    for layer in layers:
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            continue
        kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
        if isinstance(layer, nn.Conv2d):
            after = (height + 2 * padding - kernel) // stride + 1
            products = after**2 * layer.weight.numel()
        else:
            after = (height - 1) * stride - 2 * padding + kernel
            products = height**2 * layer.weight.numel()
        numbers = height**2 * layer.in_channels + after**2 * layer.out_channels
        works.append(Work(2 * products, 4 * numbers))
        height = after
    return works


def step_work(model: DCGAN) -> Work:
    """The work of all convolutions of a step; batch normalisation, losses and Adam are left out.

    Every pass of a layer (forward, gradient of the input, gradient of the weight) has the same arithmetic. The
    generator's layers make three each, the first two; the discriminator's eight: three for real and three for
    generated images, and two in the generator's step. Its first layer makes two fewer.
    """
    up = convolution_work(model.generator, 1)
    down = convolution_work(model.discriminator, model.image_size[0])
    passes = [2, *[3] * (len(up) - 1), 6, *[8] * (len(down) - 1)]
    total = Work(0, 0)
    for work, count in zip([*up, *down], passes, strict=True):
        total += Work(BATCH * work.flops * count, BATCH * work.bytes * count)
    return total


def measure(session: Session, case: str) -> list[Row]:
    """Check, then time, one training step of every alternative."""
    names = (*OURS, *PLAIN, *(() if session.compiled is False else COMPILED_NAMES))
    model, real, latents = problem()
    calls = {name: trainer.step for name, trainer in trainers(model, real, latents, names).items()}
    group = "training step: both networks, forward, losses, backward, Adam"
    return [Row(group, case, session.time(calls), OURS, EAGER, step_work(model))]


def run(session: Session) -> Report:
    """Measure everything."""
    case = f"DCGAN, {SIZE}², 64 features; {BATCH} images"
    (row,) = session.over([case], measure)[case]
    ours = row.best_ours()
    claims = [
        Claim(f"training step: {ours}, over {other}", row.speed_up(other, ours), "×", TARGET)
        for other in row.timings
        if other not in OURS
    ]
    compiled = session.compiled is not False
    return session.report("dcgan", "Training DCGAN, float32", [row], claims, compiled=compiled)


@pytest.mark.parametrize("name", (*OURS, *PLAIN, *COMPILED_NAMES))
def test_training_step(benchmark: Any, name: str) -> None:
    trainer = trainers(*problem(), [name])[name]
    benchmark.group = "training step"
    benchmark(trainer.step)


if __name__ == "__main__":
    budget = Budget(20.0, rounds=15, quick_seconds=5.0)
    command_line(run, "bench.dcgan", {"cpu": (CPU, budget)}, compiles=True)
