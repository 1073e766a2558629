"""AdversarialAutoencoder: draws of the prior become images, and its distance to the prior is what it says."""

import pytest
import torch

from genkernels.models import AdversarialAutoencoder
from genkernels.models.adversarial_autoencoder import distance_to_standard_normal


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AdversarialAutoencoder(1, 4, 3, discriminator_units=5, image_size=8)


def test_a_sample_is_the_decoded_latent_in_evaluation_mode(model):
    latents = torch.randn(4, 3)
    images = model.sample(4, latents=latents)
    assert images.shape == (4, 1, 8, 8) and images.min() >= 0 and images.max() <= 1 and model.training
    assert torch.equal(images, model.eval().decode(latents))


def test_a_seed_decides_the_samples(model):
    first, second = (model.sample(2, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_latents_of_another_shape_are_refused(model):
    with pytest.raises(ValueError, match=r"latents: expected \[2, 3\]; got shape \[3, 3\]"):
        model.sample(2, latents=torch.zeros(3, 3))


def test_the_discriminator_gives_one_logit_for_each_code(model):
    assert model.discriminator(torch.randn(6, 3)).shape == (6,)


def test_a_model_is_rebuilt_from_its_config(model):
    twin = AdversarialAutoencoder(**model.config)
    twin.load_state_dict(model.state_dict())
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(twin.eval()(x), model.eval()(x))


@pytest.mark.parametrize("size", [1, 3])
def test_the_distance_to_the_prior_is_that_of_mean_and_covariance(size):
    torch.manual_seed(0)
    codes = torch.randn(500, size, dtype=torch.float64)
    codes = (codes - codes.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(codes.T.cov().reshape(size, size))).T
    assert distance_to_standard_normal(codes) == pytest.approx(0, abs=1e-9)
    assert distance_to_standard_normal(codes + 2) == pytest.approx(4 * size)
    assert distance_to_standard_normal(codes * 3) == pytest.approx(4 * size)
    rotated = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]
    spread = torch.linspace(0.5, 2, size, dtype=torch.float64)
    assert distance_to_standard_normal(codes * spread @ rotated) == pytest.approx(float((1 - spread).square().sum()))
