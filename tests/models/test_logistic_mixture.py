"""Autoregressive models that predict mixtures of logistics: likelihood, samples and their place in checkpoints."""

import itertools

import pytest
import torch
from helpers.likelihood import assert_probabilities_sum_to_one, every_image
from torch import nn

import genkernels
from genkernels.distributions import DiscretizedLogisticMixture
from genkernels.models import GatedPixelCNN, PixelCNN, PixelRNN
from genkernels.nn import MaskedConv2d
from genkernels.sampling import NotTraceable, compile_program
from genkernels.sampling.program.instructions import Draw

MIXTURE = {"distribution": "logistic_mixture", "mixtures": 3}
MODELS = {
    "pixelcnn": lambda c, levels: PixelCNN(c, 8, 1, levels, **MIXTURE),
    "residual with classes": lambda c, levels: PixelCNN(c, 8, 1, levels, residual=True, num_classes=2, **MIXTURE),
    "gated": lambda c, levels: GatedPixelCNN(c, 6, 1, levels, head_channels=7, **MIXTURE),
    "row": lambda c, levels: PixelRNN(c, 5, 1, levels, recurrence="row", head_channels=6, **MIXTURE),
    "diagonal": lambda c, levels: PixelRNN(c, 4, 1, levels, head_channels=6, **MIXTURE),
}
BACKENDS = ["cpu", "torch", "full_forward"]


def made(name, colours, levels):
    torch.manual_seed(0)
    model = MODELS[name](colours, levels)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model, torch.ones(1, dtype=torch.long) if model.num_classes else None


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("colours, height, width", [(1, 2, 2), (3, 1, 1), (2, 1, 2)])
def test_the_probabilities_of_all_images_sum_to_one(name, colours, height, width):
    model, condition = made(name, colours, 3)
    assert_probabilities_sum_to_one(model, every_image(3, colours, height, width), condition)


@pytest.mark.parametrize("name", MODELS)
def test_forward_gives_the_parameters_of_every_pixel_from_those_before_it(name):
    model, condition = made(name, 3, 5)
    images = torch.randint(0, 5, (1, 3, 4, 4))
    before = model(images, condition)
    assert before.shape == (1, 3 * 10, 4, 4)
    for y, x in itertools.product(range(4), range(4)):
        changed = images.clone()
        changed[:, :, y, x] = (changed[:, :, y, x] + 2) % 5
        moved = (model(changed, condition) != before).any(1).flatten()
        assert not moved[: 4 * y + x + 1].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["pixelcnn", "gated", "diagonal"])
def test_samples_are_as_frequent_as_the_models_own_probabilities(name, backend):
    """Pearson's chi-square over all 81 images of two pixels, five standard deviations above its mean at most."""
    model, _ = made(name, 2, 3)
    n = 2000 if backend == "full_forward" else 20_000
    images = every_image(3, 2, 1, 2)
    expected = n * model.log_prob(images).exp().double()
    drawn = model.sample(n, size=(1, 2), backend=backend, generator=torch.Generator().manual_seed(0))
    places = drawn.flatten(1).long() @ torch.tensor([27, 9, 3, 1])
    counts = places.bincount(minlength=81)
    assert expected.sum().item() == pytest.approx(n, rel=1e-5)
    common = expected >= 5  # the others together, as the test wants it
    counts = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    expected = expected.clamp_min(1e-9)
    freedom = len(counts) - 1
    assert freedom > 20
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("name", MODELS)
def test_equal_uniforms_give_equal_images_with_every_backend_also_around_known_ones(name):
    model, condition = made(name, 3, 256)
    condition = None if condition is None else condition.expand(5)
    generator = torch.Generator().manual_seed(1)
    uniforms = torch.rand(5, 3, 4, 5, generator=generator)
    known = torch.rand(5, 3, 4, 5, generator=generator) < 0.3
    given = torch.randint(0, 256, (5, 3, 4, 5), generator=generator)
    for options in ({}, {"known": known, "given": given}, {"temperature": 0.6}):
        ours = [
            model.sample(5, size=(4, 5), uniforms=uniforms, condition=condition, backend=backend, **options)
            for backend in BACKENDS
        ]
        assert ours[0].equal(ours[1])
        assert ours[0].equal(ours[2])
        if "known" in options:
            assert ours[0][known].equal(given[known].to(torch.uint8))


def test_the_network_runs_once_for_a_pixel():
    model, _ = made("pixelcnn", 3, 4)
    program = compile_program(
        model, model.predict, (1, 3, 4, 4), model._scaled(torch.arange(4)), distribution=model.distribution
    )
    assert not any(isinstance(i, Draw) for i in program.steps[0][:-1])
    for colour in (1, 2):
        assert [i.colour for i in program.steps[colour]] == [colour]
    calls = []
    model.layers.register_forward_hook(lambda *_: calls.append(1))
    model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    model.sample(1, size=(4, 4), backend="full_forward")
    assert len(calls) == 16


def test_a_model_is_rebuilt_from_its_config_and_state_dict():
    model, _ = made("gated", 3, 5)
    again = GatedPixelCNN(**model.config)
    again.load_state_dict(model.state_dict())
    images = torch.randint(0, 5, (2, 3, 4, 4))
    assert again.log_prob(images).equal(model.log_prob(images))


def test_a_compiled_model_gives_the_same_likelihood():
    model, _ = made("pixelcnn", 3, 256)
    images = torch.randint(0, 256, (2, 3, 6, 6))
    compiled = torch.compile(model.log_prob, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model.log_prob(images))


def test_what_it_cannot_do_is_named():
    model, _ = made("pixelcnn", 3, 5)
    for backend in BACKENDS:
        with pytest.raises(ValueError, match="top_k: expected None with a mixture of logistics; got 2"):
            model.sample(1, top_k=2, size=3, backend=backend)
    with pytest.raises(ValueError, match=r"mixtures: expected a whole number in 1 .. 128; got 500"):
        PixelCNN(distribution="logistic_mixture", mixtures=500)
    with pytest.raises(ValueError, match="distribution: expected one of 'categorical', 'logistic_mixture'; got 'x'"):
        PixelRNN(distribution="x")


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_that_are_no_numbers_are_an_error_that_names_the_place(backend):
    model, _ = made("pixelcnn", 3, 5)
    nn.init.constant_(model.layers[-1].bias[4:5], torch.inf)
    with pytest.raises(ValueError, match=r"parameters: expected finite .* at image 0, channel 0, row 0, column 0"):
        model.sample(2, size=3, backend=backend)


# --- models of others -----------------------------------------------------------------------------------


class Theirs(nn.Module):
    """A user's own model with parameters in PixelCNN++'s layout."""

    def __init__(self, channel_groups=1, colours=3, mixtures=4):
        super().__init__()
        channels = DiscretizedLogisticMixture(256, colours, mixtures).channels
        self.first = MaskedConv2d(colours, 12, 3, mask_type="A", channel_groups=channel_groups)
        self.last = nn.Conv2d(12, channels, 1)

    def forward(self, x):
        return self.last(nn.functional.elu(self.first(x)))


def test_fast_sampler_draws_from_a_users_model_what_full_forward_passes_draw(seeded):
    fast = genkernels.fast_sampler(Theirs(), levels=256, in_channels=3, distribution="logistic_mixture", mixtures=4)
    assert fast.verification.pairs > 0
    uniforms = torch.rand(3, 3, 5, 6)
    full = fast.sample(3, (5, 6), uniforms=uniforms, backend="full_forward")
    assert full.float().std() > 20
    for backend in ("cpu", "torch"):
        assert fast.sample(3, (5, 6), uniforms=uniforms, backend=backend).equal(full)


def test_fast_sampler_takes_our_models_with_their_distribution(seeded):
    model, _ = made("gated", 3, 7)
    fast = genkernels.fast_sampler(model)
    uniforms = torch.rand(2, 3, 4, 4)
    assert fast.sample(2, 4, uniforms=uniforms).equal(model.sample(2, size=4, uniforms=uniforms))


def test_a_model_whose_parameters_see_their_own_pixel_is_refused(seeded):
    wrong = Theirs(channel_groups=3)
    with pytest.raises(NotTraceable, match=r"not causal: .* of colour 0 depend on colour 1 of the same pixel"):
        genkernels.fast_sampler(wrong, levels=256, in_channels=3, distribution="logistic_mixture", mixtures=4)


def test_a_model_with_another_number_of_parameters_is_refused(seeded):
    with pytest.raises(
        ValueError, match=r"expected logits \[N, 50, 1, 6, 7\] .* or \[N, 50, 6, 7\] .*; got \[N, 40, 6,"
    ):
        genkernels.fast_sampler(Theirs(), levels=256, in_channels=3, distribution="logistic_mixture", mixtures=5)
