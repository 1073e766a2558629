"""Per-sample gradients of a likelihood by ``torch.func``: those of each sample alone; checks still see values."""

import pytest
import torch
from torch import nn

from genkernels import models

LIKELIHOODS = {
    "fvbn with classes": (lambda: models.FVBN(3, 4, num_classes=3, image_size=(5, 4)), (3, 5, 4), 4),
    "pixelcnn": (lambda: models.PixelCNN(3, 6, 1, 4), (3, 5, 4), 4),
    "gated pixelcnn with classes": (lambda: models.GatedPixelCNN(3, 6, 1, 4, num_classes=3), (3, 5, 4), 4),
    "pixelrnn": (lambda: models.PixelRNN(3, 4, 1, 2), (3, 5, 4), 2),
    "audio": (lambda: models.CausalAudioNet(4, 6, 2, 2, skip_channels=5), (9,), 4),
    "vae": (lambda: models.VAE(1, 4, 3, image_size=8), (1, 8, 8), 2),
    "categorical vae": (lambda: models.VAE(1, 4, 3, 4, likelihood="categorical", image_size=8), (1, 8, 8), 4),
}


class Likelihood(nn.Module):
    """Of one sample, [1, ...]; the second argument is a label or noise."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, other):
        if isinstance(self.model, models.VAE):
            return self.model.elbo(x[None], noise=other[None])[0]
        condition = other.long()[None] if self.model.num_classes else None
        return self.model.log_prob(x[None], condition)[0]


def likelihood_and_samples(name):
    make, shape, levels = LIKELIHOODS[name]
    model = make().double().eval()
    x = torch.randint(0, levels, (4, *shape))
    other = torch.randn(4, 3).double() if isinstance(model, models.VAE) else torch.randint(0, 3, (4,))
    return Likelihood(model), x, other


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_values_and_gradients_of_each_sample_are_those_of_the_sample_alone(name, seeded):
    likelihood, x, other = likelihood_and_samples(name)
    parameters = dict(likelihood.named_parameters())

    def of(parameters, x, other):
        return torch.func.functional_call(likelihood, parameters, (x, other))

    each = torch.func.vmap(torch.func.grad_and_value(of), in_dims=(None, 0, 0))
    gradients, values = each({key: value.detach() for key, value in parameters.items()}, x, other)
    for sample in range(len(x)):
        alone = likelihood(x[sample], other[sample])
        torch.testing.assert_close(values[sample], alone)
        expected = torch.autograd.grad(alone, parameters.values())
        for (key, gradient), one in zip(gradients.items(), expected, strict=True):
            torch.testing.assert_close(gradient[sample], one, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_value_that_is_no_level_is_refused_under_vmap_too(name, seeded):
    likelihood, x, other = likelihood_and_samples(name)
    x[2].view(-1)[0] = LIKELIHOODS[name][2]
    with pytest.raises(ValueError, match="expected levels 0"):
        torch.func.vmap(likelihood)(x, other)


def test_a_label_that_is_no_class_is_refused_under_vmap_too(seeded):
    likelihood, x, other = likelihood_and_samples("gated pixelcnn with classes")
    other[1] = 3
    with pytest.raises(ValueError, match="condition: expected int64 labels"):
        torch.func.vmap(likelihood)(x, other)
