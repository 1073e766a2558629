"""Classifier: what it takes, what its code is, and what it refuses."""

import pytest
import torch

from genkernels.models import Classifier

SMALL = {"hidden_channels": 4, "latent_dim": 6, "image_size": 8, "num_classes": 3}


def images(n=5, levels=256, channels=1):
    return torch.randint(levels, (n, channels, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_logits_are_a_linear_layer_on_a_code_that_is_not_negative():
    model = Classifier(**SMALL).eval()
    code = model.encode(images())
    assert code.shape == (5, 6) and code.min() == 0 < code.max()
    assert torch.equal(model(images()), code @ model.head.weight.T + model.head.bias)


def test_levels_are_scaled_to_the_unit_interval():
    torch.manual_seed(0)
    fine = Classifier(**SMALL).eval()
    coarse = Classifier(levels=2, **SMALL).eval()
    coarse.load_state_dict(fine.state_dict())
    x = images(levels=2)
    assert torch.equal(coarse(x), fine(x * 255)) and torch.equal(coarse(x), coarse(x.double()))


def test_the_configuration_builds_a_twin():
    model = Classifier(3, levels=17, **SMALL)
    twin = Classifier(**model.config)
    assert twin.config == model.config
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(images(levels=17, channels=3)), model.eval()(images(levels=17, channels=3)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_classes": 1}, "num_classes: expected a whole number of at least 2; got 1"),
        ({"levels": 1}, "levels: expected a whole number in 2 .. 256; got 1"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"image_size": 9}, "image_size: expected sides that halving brings down to"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**{**SMALL, **options})


def test_images_that_do_not_fit_are_refused():
    model = Classifier(levels=4, **SMALL)
    with pytest.raises(ValueError, match=r"x: expected \[N, 1, 8, 8\]; got shape \[2, 3, 8, 8\]"):
        model(images(2, 4, 3))
    with pytest.raises(ValueError, match="x: "):
        model(images(levels=256))
