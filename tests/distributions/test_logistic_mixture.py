"""The mixture of discretized logistics: PixelCNN++'s likelihood, stable everywhere, and draws that follow it."""

import itertools
import math

import pytest
import torch

from genkernels.distributions import DiscretizedLogisticMixture, make_distribution

SHAPES = [(2, 1, 1), (3, 1, 4), (256, 1, 10), (3, 2, 3), (4, 3, 5), (2, 4, 2)]  # levels, colours, mixtures


def random_parameters(distribution, n, seed=0, dtype=torch.float64, std=1.5):
    generator = torch.Generator().manual_seed(seed)
    return std * torch.randn(n, distribution.channels, 1, 1, generator=generator, dtype=dtype)


def every_pixel(distribution):
    """All pixels there are, [levels ** colours, colours, 1, 1]."""
    levels = itertools.product(range(distribution.levels), repeat=distribution.colours)
    return torch.tensor(list(levels))[:, :, None, None]


def as_pixelcnn_pp_has_it(parameters, images, levels, k):
    """The likelihood of three colours as the paper's code lays it out, [N, 10 K, H, W], by differences of sigmoids."""
    n, _, height, width = parameters.shape
    parameters = parameters.permute(0, 2, 3, 1)
    logits, rest = parameters[..., :k], parameters[..., k:].reshape(n, height, width, 3, 3 * k)
    x = images.double().permute(0, 2, 3, 1)[..., None] * 2 / (levels - 1) - 1
    coefficients = rest[..., 2 * k :].tanh()
    means = rest[..., :k].clone()
    means[..., 1, :] += coefficients[..., 0, :] * x[..., 0, :]
    means[..., 2, :] += coefficients[..., 1, :] * x[..., 0, :] + coefficients[..., 2, :] * x[..., 1, :]
    sharpness = (-rest[..., k : 2 * k].clamp_min(-7)).exp()
    half = 1 / (levels - 1)
    above = torch.where(x > 1 - half, 1.0, ((x - means + half) * sharpness).sigmoid())
    below = torch.where(x < -1 + half, 0.0, ((x - means - half) * sharpness).sigmoid())
    return ((above - below).log().sum(3) + logits.log_softmax(3)).logsumexp(3).flatten(1).sum(1)


@pytest.mark.parametrize("levels, k", [(2, 1), (5, 3), (256, 10)])
def test_three_colours_have_the_layout_and_likelihood_of_pixelcnn_pp(levels, k, seeded):
    distribution = DiscretizedLogisticMixture(levels, 3, k)
    assert distribution.channels == 10 * k
    parameters = torch.randn(4, 10 * k, 3, 2, dtype=torch.float64) / 2  # what cancels in the differences stays small
    images = torch.randint(0, levels, (4, 3, 3, 2))
    expected = as_pixelcnn_pp_has_it(parameters, images, levels, k)
    torch.testing.assert_close(distribution.log_prob(parameters, images), expected, rtol=1e-9, atol=1e-8)
    strided = parameters.float().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(distribution.log_prob(strided, images).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels, colours, k", SHAPES)
@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_the_probabilities_of_all_pixels_sum_to_one(levels, colours, k, dtype, error):
    distribution = DiscretizedLogisticMixture(levels, colours, k)
    pixels = every_pixel(distribution)
    for parameters in random_parameters(distribution, 5, dtype=dtype, std=3):
        total = distribution.log_prob(parameters.expand(len(pixels), -1, -1, -1), pixels).exp().sum()
        assert total.item() == pytest.approx(1, abs=error)


def test_a_level_five_hundred_scales_away_has_its_small_probability():
    distribution = DiscretizedLogisticMixture(256, 1, 1)
    parameters = torch.tensor([0.0, -1.0, math.log(1 / 500)], dtype=torch.float64)[None, :, None, None]
    level = 140
    nearest = (2 * level / 255 - 1 - 1 / 255 + 1) * 500  # the edge towards the mean, in scales
    exact = -nearest + math.log(-math.expm1(-500 * 2 / 255))
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        got = distribution.log_prob(parameters.to(dtype), torch.full((1, 1, 1, 1), level))
        assert got.item() == pytest.approx(exact, rel=error)


def test_float32_and_its_gradients_are_finite_and_those_of_float64_for_extreme_parameters():
    distribution = DiscretizedLogisticMixture(256, 3, 2)
    extremes = torch.tensor([-1000.0, -30, -7, -1, 0, 1, 7, 30, 1000])
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(0, len(extremes), (3000, distribution.channels, 1, 1), generator=generator)
    parameters = extremes[chosen].requires_grad_()
    images = torch.tensor([0, 1, 127, 254, 255])[torch.randint(0, 5, (3000, 3, 1, 1), generator=generator)]
    double = parameters.detach().double().requires_grad_()
    got, exact = distribution.log_prob(parameters, images), distribution.log_prob(double, images)
    assert got.dtype == torch.float32
    assert got.isfinite().all()
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-3)
    (gradient,) = torch.autograd.grad(got.sum(), parameters)
    assert gradient.isfinite().all()
    (gradient,) = torch.autograd.grad(exact.sum(), double)
    assert gradient.isfinite().all()


def test_its_gradients_are_those_of_finite_differences():
    distribution = DiscretizedLogisticMixture(4, 3, 2)
    images = every_pixel(distribution)[::7]
    parameters = random_parameters(distribution, len(images)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: distribution.log_prob(p, images), (parameters,))


def test_sixteen_bits_are_taken_as_float32(seeded):
    distribution = DiscretizedLogisticMixture(256, 3, 4)
    parameters, images = torch.randn(2, 40, 3, 3).bfloat16(), torch.randint(0, 256, (2, 3, 3, 3))
    got = distribution.log_prob(parameters, images)
    assert got.dtype == torch.float32
    assert got.equal(distribution.log_prob(parameters.float(), images))


# --- drawing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels, colours, k", SHAPES)
def test_every_colour_is_drawn_as_often_as_it_is_likely_given_those_before_it(levels, colours, k):
    distribution = DiscretizedLogisticMixture(levels, colours, k)
    parameters = random_parameters(distribution, 1)
    pixels = every_pixel(distribution)
    joint = distribution.log_prob(parameters.expand(len(pixels), -1, -1, -1), pixels).exp().view([levels] * colours)
    n = 20_000
    uniforms = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for colour in range(colours):
        before = torch.arange(colour) % levels
        given = joint[tuple(before.tolist())].reshape(levels, -1).sum(1)
        drawn = distribution.draw(parameters[:, :, 0, 0].expand(n, -1), before.expand(n, -1), uniforms)
        counts = drawn.bincount(minlength=levels)
        assert (counts / n - given / given.sum()).abs().max() <= 1.001 / n


def test_the_ends_of_the_uniforms_stay_within_the_levels():
    distribution = DiscretizedLogisticMixture(256, 1, 3)
    ends = torch.tensor([0, math.nextafter(1, 0)], dtype=torch.float64)
    wide = torch.tensor([[0.0, 0, 0, 0, 0, 0, 9, 9, 9]]).expand(2, -1)
    assert distribution.draw(wide, torch.zeros(2, 0), ends).tolist() == [0, 255]
    narrow = torch.tensor([[0.0, -1e6, -1e6, -1, -1, -1, -30, -30, -30]]).expand(2, -1)
    assert distribution.draw(narrow, torch.zeros(2, 0), torch.tensor([0.0, 0.5])).tolist() == [0, 0]


def test_temperature_divides_the_logits_and_multiplies_the_scales():
    distribution = DiscretizedLogisticMixture(256, 3, 5)
    parameters = random_parameters(distribution, 400)[:, :, 0, 0]
    earlier = torch.randint(0, 256, (400, 2), generator=torch.Generator().manual_seed(1))
    uniforms = torch.rand(400, generator=torch.Generator().manual_seed(2))
    tempered = parameters.unflatten(1, (10, 5)).clone()
    tempered[:, 0] /= 0.25
    tempered[:, 2::3] += math.log(0.25)
    expected = distribution.draw(tempered.flatten(1), earlier, uniforms)
    assert distribution.draw(parameters, earlier, uniforms, temperature=0.25).equal(expected)


@pytest.mark.parametrize("temperature", [1e-300, 1e-9])
def test_a_tiny_temperature_takes_the_mean_of_the_most_likely_component(temperature):
    distribution = DiscretizedLogisticMixture(5, 1, 2)
    parameters = torch.tensor([[0.0, 1, -0.9, 0.45, 0, 0], [1, 0, -0.9, 0.45, 0, 3]]).repeat(50, 1)
    drawn = distribution.draw(parameters, torch.zeros(100, 0), torch.linspace(0.01, 0.99, 100), temperature)
    assert drawn.view(50, 2).unique(dim=0).tolist() == [[3, 0]]


# --- errors ---------------------------------------------------------------------------------------------


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"mixtures: expected a whole number in 1 .. 128; got 0"):
        DiscretizedLogisticMixture(256, 3, 0)
    with pytest.raises(
        ValueError, match=r"distribution: expected one of 'categorical', 'logistic_mixture'; got 'normal'"
    ):
        make_distribution("normal", 256, 3, 10)
    with pytest.raises(ValueError, match=r"top_k: expected None with a mixture of logistics; got 3"):
        DiscretizedLogisticMixture(256, 3).check_options(1.0, 3)
