"""FVBN: an exact likelihood, each sub-pixel from those before it alone, and samples at the cost of one forward pass."""

import pytest
import torch
import torch.nn.functional as F
from helpers.likelihood import assert_probabilities_sum_to_one, every_image

from genkernels.models import FVBN


def random_model(*args, **options) -> FVBN:
    torch.manual_seed(0)
    model = FVBN(*args, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@pytest.mark.parametrize(
    "channels, levels, size", [(1, 2, (2, 3)), (1, 3, (2, 2)), (3, 2, (1, 2)), (2, 3, (1, 2))], ids=str
)
def test_the_probabilities_of_all_images_sum_to_one(channels, levels, size):
    model = FVBN(channels, levels, image_size=size)
    assert_probabilities_sum_to_one(model, every_image(levels, channels, *model.image_size))


def test_two_levels_are_logistic_regressions_on_all_sub_pixels_before():
    model = random_model(2, 2, image_size=(2, 3))
    images = torch.randint(0, 2, (4, 2, 2, 3))
    flat = images.permute(0, 2, 3, 1).flatten(1).double()
    expected = torch.zeros(4, dtype=torch.float64)
    for i in range(12):
        logit = model.bias[0, 0, i] + flat[:, :i] @ model.weight[0, i, :i]
        expected -= F.binary_cross_entropy_with_logits(logit.detach(), flat[:, i], reduction="none")
    assert torch.allclose(model.log_prob(images), expected, rtol=1e-10)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 2}])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_samples_are_those_of_one_full_forward_pass_for_each_sub_pixel(num_classes, options):
    model = random_model(3, 4, num_classes=num_classes, image_size=(3, 4))
    condition = None if num_classes is None else torch.tensor([2, 0, 1, 1, 0])
    uniforms = torch.rand(5, 3, 3, 4, dtype=torch.float64)
    given, known = torch.randint(0, 4, (5, 3, 3, 4)), torch.rand(5, 3, 3, 4) < 0.3
    for more in ({}, {"given": given, "known": known}):
        keywords = {"uniforms": uniforms, "condition": condition, **options, **more}
        assert torch.equal(model.sample(5, **keywords), model.sample(5, backend="full_forward", **keywords))


def test_sampling_runs_no_forward_pass(monkeypatch):
    model = random_model(image_size=4)
    monkeypatch.setattr(model, "predict", None)
    assert model.sample(2).shape == (2, 1, 4, 4)


def test_samples_are_as_frequent_as_log_prob_says():
    model = random_model(1, 2, image_size=(1, 3))
    images = every_image(2, 1, 1, 3)
    drawn = model.sample(20_000, generator=torch.Generator().manual_seed(1))
    counts = (drawn[:, None] == images[None].to(torch.uint8)).flatten(2).all(2).sum(0)
    expected = model.log_prob(images).exp() * 20_000
    assert ((counts - expected) ** 2 / expected).sum() < 24.3  # chi-square of 7 degrees of freedom, 1 in 1000


def test_logits_that_are_not_finite_name_the_sub_pixel():
    model = random_model(1, 2, image_size=(2, 2))
    with torch.no_grad():
        model.bias[0, 0, 2] = float("nan")
    with pytest.raises(ValueError, match="image 0, channel 0, row 1, column 0"):
        model.sample(1)


def test_an_image_of_another_size_is_refused():
    model = FVBN(image_size=4)
    with pytest.raises(ValueError, match=r"x: expected \[N, 1, 4, 4\]; got shape \[2, 1, 5, 4\]"):
        model(torch.zeros(2, 1, 5, 4))
    with pytest.raises(ValueError, match=r"size: expected \(4, 4\); got \(5, 4\)"):
        model.sample(2, size=(5, 4))
