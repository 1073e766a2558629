"""PixelVAE: its bound is that of a conditional PixelCNN, and its samples are drawn with the code as their condition."""

import pytest
import torch
from helpers.likelihood import every_image
from torch.distributions import Normal, kl_divergence

from genkernels.models import PixelVAE


def build(**options) -> PixelVAE:
    torch.manual_seed(0)
    model = PixelVAE(
        1, 4, 3, **{"pixelcnn_channels": 4, "num_layers": 1, "first_kernel_size": 3, "image_size": 8, **options}
    )
    return model.double().eval()


@pytest.mark.parametrize("num_classes", [None, 3])
def test_the_bound_is_the_pixelcnns_likelihood_less_the_divergence(num_classes):
    model = build(levels=4, num_classes=num_classes)
    x = torch.randint(0, 4, (5, 1, 8, 8))
    labels = None if num_classes is None else torch.tensor([0, 1, 2, 1, 2])
    noise = torch.randn(5, 3, dtype=torch.float64)
    mean, log_variance = model.encode(x, labels)
    q = Normal(mean, (0.5 * log_variance).exp())
    z = mean + q.stddev * noise
    code = z if labels is None else torch.cat([z, torch.eye(3, dtype=torch.float64)[labels]], 1)
    expected = model.pixelcnn.log_prob(x, model.decoder(code)) - kl_divergence(q, Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(model.elbo(x, labels, noise=noise), expected, rtol=1e-10)
    if labels is not None:
        assert not torch.allclose(model.elbo(x, labels.flip(0), noise=noise), expected)


def test_given_a_code_the_probabilities_of_all_images_sum_to_one():
    model = build(image_size=8)
    images = every_image(2, 1, 2, 4)
    condition = model.decoder(torch.randn(1, 3, dtype=torch.float64))[:, :, :2, :4].expand(len(images), -1, -1, -1)
    assert model.pixelcnn.log_prob(images, condition).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("colours", [1, 3])
def test_samples_are_those_of_full_forward_passes_given_the_code(colours):
    model = PixelVAE(colours, 4, 3, 4, pixelcnn_channels=6, num_layers=1, image_size=8).double().eval()
    latents = torch.randn(3, 3, dtype=torch.float64)
    images = model.sample(3, latents=latents, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        condition = model.decoder(latents)
    expected = model.pixelcnn.sample(
        3, condition=condition, generator=torch.Generator().manual_seed(5), backend="full_forward"
    )
    assert torch.equal(images, expected.double() / 3)


def test_the_fast_sampler_takes_the_decoded_code_without_a_warning(recwarn):
    model = build()
    model.sample(2)
    assert not recwarn.list


def test_a_reconstruction_depends_on_the_image_and_is_the_same_every_time():
    model = build()
    x = torch.randint(0, 2, (2, 1, 8, 8))
    first, second = model.reconstruct(x), model.reconstruct(x)
    assert torch.equal(first, second) and first.shape == x.shape and set(first.unique().tolist()) <= {0.0, 1.0}


def test_a_model_is_rebuilt_from_its_config():
    model = build(levels=5, beta=0.5, num_classes=2)
    twin = PixelVAE(**model.config).double().eval()
    twin.load_state_dict(model.state_dict())
    x, labels, noise = torch.randint(0, 5, (2, 1, 8, 8)), torch.tensor([0, 1]), torch.randn(2, 3).double()
    assert torch.equal(twin.elbo(x, labels, noise=noise), model.elbo(x, labels, noise=noise)) and twin.beta == 0.5


def test_labels_are_asked_for_where_there_are_classes_and_refused_where_there_are_none():
    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"condition: expected int64 labels \[2\] in 0 .. 2; got None"):
        build(num_classes=3).elbo(x)
    with pytest.raises(ValueError, match="condition: this model has no classes; got Tensor"):
        build().elbo(x, torch.tensor([0, 1]))
