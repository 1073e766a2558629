"""DCGAN: the usual networks at every size, initialised as in the paper, and samples that depend on nothing else."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genkernels.models import DCGAN
from genkernels.train.objectives.adversarial_losses import discriminator_loss, generator_loss


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def plain_64(colours: int, h: int, latents: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The networks for 64 x 64 images written out with torch.nn alone."""
    generator = nn.Sequential(
        nn.Unflatten(1, (latents, 1, 1)),
        nn.ConvTranspose2d(latents, 8 * h, 4, 1, 0, bias=False), nn.BatchNorm2d(8 * h), nn.ReLU(),
        nn.ConvTranspose2d(8 * h, 4 * h, 4, 2, 1, bias=False), nn.BatchNorm2d(4 * h), nn.ReLU(),
        nn.ConvTranspose2d(4 * h, 2 * h, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * h), nn.ReLU(),
        nn.ConvTranspose2d(2 * h, h, 4, 2, 1, bias=False), nn.BatchNorm2d(h), nn.ReLU(),
        nn.ConvTranspose2d(h, colours, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    discriminator = nn.Sequential(
        nn.Conv2d(colours, h, 4, 2, 1, bias=False), nn.LeakyReLU(0.2),
        nn.Conv2d(h, 2 * h, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * h), nn.LeakyReLU(0.2),
        nn.Conv2d(2 * h, 4 * h, 4, 2, 1, bias=False), nn.BatchNorm2d(4 * h), nn.LeakyReLU(0.2),
        nn.Conv2d(4 * h, 8 * h, 4, 2, 1, bias=False), nn.BatchNorm2d(8 * h), nn.LeakyReLU(0.2),
        nn.Conv2d(8 * h, 1, 4, 1, 0, bias=False), nn.Flatten(0),
    )  # fmt: skip
    return generator, discriminator


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Give the target the source's parameters and buffers; both hold the same ones in the same order."""
    ours, theirs = source.state_dict().values(), target.state_dict().values()
    with torch.no_grad():
        for value, place in zip(ours, theirs, strict=True):
            assert value.shape == place.shape
            place.copy_(value)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_at_64_pixels_both_networks_are_the_usual_ones(part, training):
    ours = getattr(DCGAN(3, 4, 10).double(), part).train(training)
    plain = plain_64(3, 4, 10)[part == "discriminator"].double().train(training)
    copy_in_order(ours, plain)
    x = torch.randn(5, 10, dtype=torch.float64) if part == "generator" else torch.rand(5, 3, 64, 64).double() * 2 - 1
    y, expected = ours(x), plain(x)
    assert torch.allclose(y, expected, rtol=1e-10, atol=1e-12)
    direction = torch.randn_like(y)
    gradients, wanted = (
        torch.autograd.grad((out * direction).sum(), list(net.parameters()))
        for out, net in ((y, ours), (expected, plain))
    )
    for got, want in zip(gradients, wanted, strict=True):
        assert torch.allclose(got, want, rtol=1e-8, atol=1e-10 * want.abs().max().item())
    for got, want in zip(ours.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(got, want)


def test_the_default_has_the_papers_widths():
    model = DCGAN()
    widths = (
        [layer.out_channels for layer in model.generator[1:]],
        [layer.out_channels for layer in model.discriminator[:-1]],
    )
    assert widths == ([512, 256, 128, 64, 3], [64, 128, 256, 512, 1])
    assert model.generator[1].in_channels == 100


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32, 64, 128, (32, 48)], ids=str)
def test_images_of_every_size_come_out_and_go_in(size, colours):
    model = DCGAN(colours, 4, 6, image_size=size)
    height, width = model.image_size
    images = model.generator(model.draw_latents(3))
    logits = model.discriminator(images)
    assert images.shape == (3, colours, height, width) and logits.shape == (3,)
    assert images.abs().max() <= 1
    discriminator_loss(logits, logits.flip(0)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())


def test_batch_normalisation_is_everywhere_but_at_the_images_and_the_logit():
    for size, layers in ((28, 3), (32, 4), (64, 5), (128, 6)):
        model = DCGAN(1, 2, 6, image_size=size)
        assert [layer.bn is not None for layer in model.generator[1:]] == [True] * (layers - 1) + [False]
        assert [layer.bn is not None for layer in model.discriminator[:-1]] == [False, *[True] * (layers - 2), False]


def test_weights_start_as_in_the_paper():
    model = DCGAN(3, 64, 100, image_size=32)
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            assert layer.bias is None
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert abs(layer.weight.mean().item()) < 0.02 * 5 / layer.weight.numel() ** 0.5
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.mean().item() == pytest.approx(1, abs=0.02 * 5 / layer.num_features**0.5)
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.4)
            assert not layer.bias.any()


def test_latents_fill_the_cube():
    latents = DCGAN(1, 2, 50, image_size=8).draw_latents(2000)
    assert latents.shape == (2000, 50) and -1 <= latents.min() < -0.99 and 0.99 < latents.max() <= 1
    assert latents.mean().item() == pytest.approx(0, abs=0.01)
    assert latents.var().item() == pytest.approx(1 / 3, rel=0.02)


def test_the_losses_are_the_cross_entropies_of_the_labels():
    real, fake = torch.randn(7).double() * 3, torch.randn(7).double() * 3
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    expected = F.binary_cross_entropy(real.sigmoid(), ones) + F.binary_cross_entropy(fake.sigmoid(), zeros)
    assert torch.allclose(discriminator_loss(real, fake), expected)
    assert torch.allclose(generator_loss(fake), F.binary_cross_entropy(fake.sigmoid(), ones))
    sure = torch.tensor([-200.0], requires_grad=True)  # a discriminator that is sure still teaches the generator
    (slope,) = torch.autograd.grad(generator_loss(sure), sure)
    assert slope.item() == -1 and torch.isfinite(discriminator_loss(-sure, -sure))


def test_samples_follow_from_their_own_latents_alone():
    model = DCGAN(1, 4, 6, image_size=8)
    model.generator(model.draw_latents(64))  # running statistics of some batch
    latents = model.draw_latents(5)
    together = model.sample(5, latents=latents)
    alone = torch.cat([model.sample(1, latents=latent[None]) for latent in latents])
    assert torch.allclose(together, alone, atol=1e-6) and model.training
    a, b = (model.sample(2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1))
    assert torch.equal(a, b) and not torch.equal(a, model.sample(2, generator=torch.Generator().manual_seed(2)))
    before = copy.deepcopy(model.state_dict())
    model.sample(3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_model_is_rebuilt_from_its_config_and_state_dict():
    model = DCGAN(1, 4, 6, image_size=(8, 12))
    twin = DCGAN(**model.config)
    twin.load_state_dict(model.state_dict())
    latents = model.draw_latents(2)
    assert torch.equal(twin.sample(2, latents=latents), model.sample(2, latents=latents))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"in_channels": 0}, "in_channels: expected a whole number of at least 1; got 0"),
        ({"hidden_channels": 0}, "hidden_channels: expected a whole number of at least 1; got 0"),
        ({"latent_dim": 0}, "latent_dim: expected a whole number of at least 1; got 0"),
        ({"image_size": 30}, "image_size: expected sides that halving brings down to 4 .. 7, .* got 30"),
        ({"image_size": 7}, "image_size: expected sides that halving"),
        ({"image_size": (64, 66)}, "image_size: expected sides that halving"),
    ],
)
def test_a_wrong_constructor_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DCGAN(**arguments)


def test_latents_that_do_not_fit_are_named():
    model = DCGAN(1, 2, 6, image_size=8)
    with pytest.raises(ValueError, match=r"latents: expected \[3, 6\]; got shape \[2, 6\]"):
        model.sample(3, latents=torch.zeros(2, 6))
    with pytest.raises(ValueError, match="n: expected a whole number of at least 1; got 0"):
        model.sample(0)
