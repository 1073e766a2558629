"""Sampling and input checks, which all autoregressive models share, shown on a small PixelCNN."""

import math

import pytest
import torch

from genkernels.distributions.categorical import draw, log_likelihood
from genkernels.models import GatedPixelCNN, PixelCNN, PixelRNN, autoregressive
from genkernels.ops import softmax_nll


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = PixelCNN(3, 8, 1, 4, image_size=(3, 4))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # biases too, or the first pixel is drawn from a uniform
    return model


@pytest.fixture
def uniforms():
    return torch.rand(2, 3, 3, 4, generator=torch.Generator().manual_seed(1))


# --- drawing --------------------------------------------------------------------------------------------


def test_a_level_is_drawn_by_inverse_cdf():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(8, 4)
    uniforms = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.5999, 0.6001, 0.9999])
    assert draw(logits, uniforms).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_levels_are_drawn_as_often_as_they_are_likely():
    probabilities = torch.tensor([0.05, 0.5, 0.0, 0.45])
    uniforms = (torch.arange(100_000) + 0.5) / 100_000
    counts = draw(probabilities.log().expand(100_000, 4), uniforms).bincount(minlength=4)
    assert (counts / 100_000 - probabilities).abs().max() < 1e-4
    assert counts[2] == 0


def test_the_largest_uniform_below_one_stays_within_the_levels():
    largest = torch.tensor([math.nextafter(1, 0)], dtype=torch.float64)
    assert draw(torch.zeros(1, 256), largest).item() == 255
    assert draw(torch.tensor([[0.0, -math.inf]]), largest).item() == 0


def test_a_level_without_probability_is_never_drawn_not_even_by_a_uniform_of_zero():
    assert draw(torch.tensor([[-math.inf, 0.0]]), torch.zeros(1)).item() == 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-6])
def test_a_tiny_temperature_takes_the_most_likely_level(temperature):
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * 100
    assert torch.equal(draw(logits, torch.rand(50), temperature), logits.argmax(1))


# --- sampling -------------------------------------------------------------------------------------------


def test_samples_are_levels_of_the_models_size(model):
    samples = model.sample(2)
    assert samples.shape == (2, 3, 3, 4) and samples.dtype == torch.uint8
    assert samples.max() < 4
    assert model.sample(1, size=(5, 2)).shape == (1, 3, 5, 2)
    assert model.sample(1, size=2).shape == (1, 3, 2, 2)


def test_identical_uniforms_give_identical_samples_and_others_do_not(model, uniforms):
    samples = model.sample(2, uniforms=uniforms)
    assert torch.equal(model.sample(2, uniforms=uniforms.double()), samples)
    assert not torch.equal(model.sample(2, uniforms=uniforms.flip(0)), samples)
    assert torch.equal(model.sample(2, uniforms=uniforms.flip(0)), samples.flip(0))  # images do not mix


def test_a_generator_decides_the_uniforms(model):
    first, second, other = (model.sample(2, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, second) and not torch.equal(first, other)
    uniforms = torch.rand(2, 3, 3, 4, generator=torch.Generator().manual_seed(7))
    assert torch.equal(model.sample(2, uniforms=uniforms), first)


def test_every_sub_pixel_is_drawn_from_its_own_conditional(model, uniforms):
    samples = model.sample(2, uniforms=uniforms)
    with torch.no_grad():
        logits = model(samples)  # all conditionals at once, now that everything before each of them is known
    cdf = logits.double().softmax(1).cumsum(1)
    assert torch.equal((cdf <= uniforms.unsqueeze(1)).sum(1), samples.long())


def test_samples_are_as_frequent_as_log_prob_says():
    torch.manual_seed(0)
    model = PixelCNN(1, 8, 1, 2, image_size=2)
    count = 40_000
    samples = model.sample(count, generator=torch.Generator().manual_seed(0)).flatten(1).long()
    frequency = (samples * torch.tensor([8, 4, 2, 1])).sum(1).bincount(minlength=16) / count
    images = torch.tensor([[int(bit) for bit in f"{i:04b}"] for i in range(16)]).view(16, 1, 2, 2)
    probability = model.log_prob(images).exp()
    assert ((frequency - probability).abs() < 5 * (probability / count).sqrt()).all()


def test_a_low_temperature_takes_the_most_likely_level_of_every_sub_pixel(model, uniforms):
    samples = model.sample(2, uniforms=uniforms, temperature=1e-6)
    assert torch.equal(model(samples).argmax(1), samples.long())


def test_the_model_is_left_in_the_mode_it_was_in(model):
    for mode in (True, False):
        model.train(mode)
        model.sample(1)
        assert model.training is mode
    model.train()
    with pytest.raises(RuntimeError, match="stop"):
        model.sample(1, progress=lambda done, total: (_ for _ in ()).throw(RuntimeError("stop")))
    assert model.training


def test_sampling_records_no_gradient_and_reports_every_row(model):
    calls = []
    samples = model.sample(1, progress=lambda done, total: calls.append((done, total)))
    assert not samples.requires_grad and all(p.grad is None for p in model.parameters())
    assert calls == [(12, 36), (24, 36), (36, 36)]


# --- completing -----------------------------------------------------------------------------------------


def test_known_pixels_are_kept_exactly_and_the_others_drawn_given_them(model, uniforms):
    given = torch.randint(0, 4, (2, 3, 3, 4), generator=torch.Generator().manual_seed(2))
    known = torch.rand(2, 3, 3, 4, generator=torch.Generator().manual_seed(3)) < 0.5
    samples = model.sample(2, uniforms=uniforms, given=given, known=known)
    assert torch.equal(samples[known].long(), given[known])
    drawn = (model(samples).double().softmax(1).cumsum(1) <= uniforms.unsqueeze(1)).sum(1)
    assert torch.equal(drawn[~known], samples[~known].long())


def test_given_values_where_nothing_is_known_are_ignored(model, uniforms):
    known = torch.zeros(1, 1, 3, 4, dtype=torch.bool)
    given = torch.full((1, 3, 3, 4), 99)
    assert torch.equal(model.sample(2, uniforms=uniforms, given=given, known=known), model.sample(2, uniforms=uniforms))


def test_one_mask_and_one_given_image_serve_a_whole_batch(model, uniforms):
    given = torch.randint(0, 4, (1, 3, 3, 4))
    known = torch.zeros(1, 1, 3, 4, dtype=torch.bool)
    known[:, :, :2] = True
    samples = model.sample(2, uniforms=uniforms, given=given, known=known)
    assert torch.equal(samples[:, :, :2].long(), given[:, :, :2].expand(2, 3, 2, 4))


# --- what does not fit ----------------------------------------------------------------------------------

IMAGE = torch.zeros(1, 3, 3, 4, dtype=torch.uint8)
KNOWN = torch.ones(1, 1, 3, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"n": 0}, "n: expected a whole number of at least 1; got 0"),
        ({"n": 1.5}, "n: expected a whole number of at least 1; got 1.5"),
        ({"temperature": 0}, "temperature: expected a number above 0; got 0"),
        ({"top_k": 0}, "top_k: expected a whole number of at least 1; got 0"),
        ({"backend": "gpu"}, r"backend: expected one of .*'torch'.*; got 'gpu'"),
        ({"temperature": math.nan}, "temperature: expected a number above 0; got nan"),
        ({"condition": torch.zeros(1)}, "condition: PixelCNN takes none; got Tensor"),
        ({"size": (1, 2, 3)}, "size: expected one number or"),
        ({"uniforms": torch.rand(1, 3, 4, 3)}, r"uniforms: expected floating-point \[1, 3, 3, 4\]; got"),
        ({"uniforms": torch.zeros(1, 3, 3, 4).int()}, "uniforms: expected floating-point .* got torch.int32"),
        ({"uniforms": torch.ones(1, 3, 3, 4)}, r"uniforms: expected numbers in \[0, 1\); got 1 .. 1"),
        ({"given": IMAGE}, "given, known: expected both or neither; got given"),
        ({"known": KNOWN}, "given, known: expected both or neither; got known"),
        ({"given": IMAGE, "known": KNOWN.int()}, "known: expected dtype bool; got torch.int32"),
        ({"given": IMAGE, "known": KNOWN[0]}, r"known: expected \[1 or 1, 3 or 1, 3, 4\]; got \[1, 3, 4\]"),
        ({"given": IMAGE[:, :1], "known": KNOWN}, r"given: expected \[1 or 1, 3, 3, 4\]; got \[1, 1, 3, 4\]"),
        ({"given": IMAGE + 4, "known": KNOWN}, r"given: expected levels 0 .. 3; got 4 .. 4"),
    ],
)
def test_a_wrong_argument_of_sample_is_named(model, keywords, message):
    with pytest.raises(ValueError, match=message):
        model.sample(**{"n": 1, **keywords})


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(3, 3, 4), r"x: expected \[N, 3, H, W\]; got shape \[3, 3, 4\]"),
        (torch.zeros(1, 1, 3, 4), r"x: expected \[N, 3, H, W\]; got shape \[1, 1, 3, 4\]"),
        (torch.full((1, 3, 3, 4), 4), r"x: expected levels 0 .. 3; got 4 .. 4"),
        (torch.full((1, 3, 3, 4), -1), r"x: expected levels 0 .. 3; got -1 .. -1"),
        (torch.full((1, 3, 3, 4), 0.5), r"x: expected whole levels 0 .. 3; got fractions"),
        (torch.full((1, 3, 3, 4), math.nan), r"x: expected levels 0 .. 3; got nan"),
    ],
)
def test_a_wrong_image_is_named(model, x, message):
    with pytest.raises(ValueError, match=message):
        model.log_prob(x)


def test_a_condition_that_the_model_cannot_take_is_refused_everywhere(model):
    for call in (model, model.log_prob):
        with pytest.raises(ValueError, match="condition: PixelCNN takes none"):
            call(IMAGE, torch.zeros(1, 5))


def test_forward_neither_rounds_nor_checks_so_that_it_can_be_differentiated(model):
    x = torch.rand(1, 3, 3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x * 10 - 5).sum(), x)
    assert gradient.abs().sum() > 0


def test_an_empty_batch_gives_no_likelihoods(model):
    assert model.log_prob(torch.zeros(0, 3, 3, 4)).shape == (0,)


# --- the fused likelihood -------------------------------------------------------------------------------


FUSED = {
    "pixelcnn": lambda: PixelCNN(3, 8, 1, 64),
    "pixelcnn with a head": lambda: PixelCNN(1, 8, 1, 256, residual=True, head_channels=9, num_classes=3),
    "gated": lambda: GatedPixelCNN(3, 7, 1, 64, head_channels=8),
    "diagonal": lambda: PixelRNN(1, 4, 1, 64, head_channels=6),
    "row": lambda: PixelRNN(3, 4, 1, 40, recurrence="row", head_channels=7),
}


@pytest.mark.parametrize("name", FUSED)
def test_many_levels_have_the_likelihood_and_gradients_of_the_logits(name, monkeypatch):
    torch.manual_seed(0)
    model = FUSED[name]()
    x = torch.randint(0, model.levels, (2, model.in_channels, 5, 4))
    condition = torch.tensor([0, 2]) if model.num_classes else None
    parameters = list(model.parameters())
    calls = []
    monkeypatch.setattr(autoregressive, "softmax_nll", lambda *a, **k: calls.append(1) or softmax_nll(*a, **k))
    fused = model.log_prob(x, condition)
    assert calls == [1]
    monkeypatch.setattr(autoregressive, "FUSED_LEVELS", 1000)
    plain = model.log_prob(x, condition)
    assert calls == [1]
    torch.testing.assert_close(fused, plain)
    monkeypatch.setattr(autoregressive, "FUSED_LEVELS", 32)
    mean = model.nats(x, condition)
    assert calls == [1, 1]
    torch.testing.assert_close(mean, -plain.mean())
    for a, b in zip(
        *(torch.autograd.grad(y, parameters, retain_graph=True) for y in (mean, -plain.mean())), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    for a, b in zip(*(torch.autograd.grad(y.sum(), parameters) for y in (fused, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_model_with_a_forward_or_a_last_layer_of_its_own_is_taken_at_its_word():
    class Shifted(PixelCNN):
        def predict(self, scaled, condition):
            return 2 * super().predict(scaled, condition)

    torch.manual_seed(0)
    model, x = Shifted(1, 8, 1, 64), torch.randint(0, 64, (2, 1, 4, 4))
    torch.testing.assert_close(model.log_prob(x), log_likelihood(model(x), x))
    model = PixelCNN(1, 8, 1, 64)
    model.layers[-1] = torch.nn.Sequential(model.layers[-1], torch.nn.Softplus())
    torch.testing.assert_close(model.log_prob(x), log_likelihood(model(x), x))
