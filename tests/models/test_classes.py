"""PixelCNN and PixelRNN conditioned on classes: exact likelihoods, causal, and sampled by the fast sampler."""

import pytest
import torch
from helpers.likelihood import assert_drawn_from_their_own_conditionals, assert_probabilities_sum_to_one, every_image

from genkernels import fast_sampler
from genkernels.models import PixelCNN, PixelRNN

BUILDS = {
    "pixelcnn": lambda **o: PixelCNN(1, 6, 1, 3, num_classes=4, image_size=(2, 2), **o),
    "residual pixelcnn": lambda **o: PixelCNN(1, 6, 1, 3, residual=True, num_classes=4, image_size=(2, 2), **o),
    "diagonal pixelrnn": lambda **o: PixelRNN(1, 6, 1, 3, num_classes=4, image_size=(2, 2), **o),
    "row pixelrnn": lambda **o: PixelRNN(1, 6, 1, 3, recurrence="row", num_classes=4, image_size=(2, 2), **o),
}


@pytest.fixture(params=BUILDS)
def model(request):
    torch.manual_seed(0)
    return BUILDS[request.param]()


def test_the_probabilities_of_all_images_of_a_class_sum_to_one(model):
    assert_probabilities_sum_to_one(model, every_image(3, 1, 2, 2), torch.tensor([2]))


def test_each_class_has_a_likelihood_of_its_own(model):
    images = torch.randint(0, 3, (4, 1, 2, 2))
    by_class = [model.log_prob(images, torch.full((4,), label)) for label in range(4)]
    assert all(not torch.allclose(by_class[0], other) for other in by_class[1:])
    mixed = model.log_prob(images, torch.arange(4))
    torch.testing.assert_close(mixed, torch.stack([by_class[i][i] for i in range(4)]))


def test_samples_are_drawn_from_the_conditionals_of_their_class(model, recwarn):
    assert_drawn_from_their_own_conditionals(model, 4, torch.tensor([3, 0, 2, 1]))
    assert not recwarn.list


def test_the_fast_sampler_takes_the_labels(model):
    sampler = fast_sampler(model, condition=torch.tensor([1, 3]))
    uniforms, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 2])
    assert torch.equal(
        sampler.sample(2, (2, 2), uniforms=uniforms, condition=labels),
        model.sample(2, uniforms=uniforms, condition=labels, backend="full_forward"),
    )


def test_labels_are_asked_for(model):
    with pytest.raises(ValueError, match=r"condition: expected int64 labels \[2\] in 0 \.\. 3; got None"):
        model.log_prob(torch.zeros(2, 1, 2, 2))
    twin = type(model)(**model.config)
    twin.load_state_dict(model.state_dict())
    assert twin.num_classes == 4
