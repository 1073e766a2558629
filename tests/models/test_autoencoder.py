"""Autoencoder: images through a code and back, and a classifier that starts from what it has learnt."""

import pytest
import torch
import torch.nn.functional as F

from genkernels.models import Autoencoder


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("channels, size", [(1, 8), (3, 28), (1, 32), (3, (16, 24))], ids=str)
def test_images_become_codes_and_images_again(channels, size):
    model = Autoencoder(channels, 4, 5, image_size=size)
    x = torch.rand(3, channels, *model.image_size)
    code = model.encode(x)
    y = model.decode(code)
    assert code.shape == (3, 5) and y.shape == x.shape
    assert y.min() >= 0 and y.max() <= 1
    model.reconstruction_error(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_error_is_the_mean_square_over_an_image():
    model = Autoencoder(2, 4, 5, image_size=8).eval()
    x = torch.rand(3, 2, 8, 8)
    expected = [F.mse_loss(model(x)[i], x[i]).item() for i in range(3)]
    assert model.reconstruction_error(x).tolist() == pytest.approx(expected)


def test_reconstructing_is_done_in_evaluation_mode_and_leaves_the_model_as_it_is():
    model = Autoencoder(1, 4, 5, image_size=8)
    x = torch.rand(6, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    alone = torch.cat([model.reconstruct(image[None]) for image in x])
    assert torch.allclose(model.reconstruct(x), alone, atol=1e-6)
    assert model.training and not alone.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_classifier_starts_from_a_copy_of_the_encoder():
    model = Autoencoder(1, 4, 5, image_size=8)
    x = torch.rand(6, 1, 8, 8)
    model.encode(x)  # running statistics of some batch
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classifier = model.classifier(10)
    model.eval(), classifier.eval()
    assert classifier(x).shape == (6, 10)
    assert torch.equal(classifier(x), classifier[1](model.encode(x)))

    classifier.train()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
    F.cross_entropy(classifier(x), torch.arange(6)).backward()
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    changed = dict(classifier[0].named_parameters())
    assert all(not torch.equal(before[f"encoder.{name}"], value) for name, value in changed.items() if value.dim() > 1)


def test_a_model_is_rebuilt_from_its_config_and_state_dict():
    model = Autoencoder(3, 4, 5, image_size=(8, 12))
    twin = Autoencoder(**model.config)
    twin.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 8, 12)
    assert torch.equal(twin.reconstruct(x), model.reconstruct(x))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Autoencoder(0), "in_channels: expected a whole number of at least 1; got 0"),
        (lambda: Autoencoder(latent_dim=0), "latent_dim: expected a whole number of at least 1; got 0"),
        (lambda: Autoencoder(image_size=17), "image_size: expected sides that halving"),
        (lambda: Autoencoder()(torch.zeros(2, 1, 28, 27)), r"x: expected \[N, 1, 28, 28\]; got shape \[2, 1, 28, 27\]"),
        (lambda: Autoencoder().classifier(1), "num_classes: expected a whole number of at least 2; got 1"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
