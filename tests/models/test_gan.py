"""GAN and what all adversarial models share: classes, minibatch discrimination, spectral norm, sampling."""

import pytest
import torch

from genkernels.models import DCGAN, GAN
from genkernels.models.adversarial import without_batch_norm
from genkernels.nn import MinibatchDiscrimination

BUILDS = {
    "gan": lambda **options: GAN(1, 8, 2, 3, image_size=8, **options),
    "dcgan": lambda **options: DCGAN(1, 4, 3, image_size=8, **options),
}


@pytest.fixture(params=BUILDS)
def build(request):
    torch.manual_seed(0)
    return BUILDS[request.param]


def test_images_are_in_the_range_of_tanh_and_points_are_anywhere():
    images = GAN(1, 8, 2, 3, image_size=8).generate(torch.randn(5, 3) * 1e3)
    assert images.shape == (5, 1, 8, 8) and images.abs().max() <= 1
    points = GAN(2, 8, 2, 3, bounded=False, image_size=1).generate(torch.randn(50, 3) * 1e3)
    assert points.shape == (50, 2, 1, 1) and points.abs().max() > 1


@pytest.mark.parametrize(
    "options", [{}, {"num_classes": 4}, {"minibatch_kernels": 5}, {"spectral_norm": True},
                {"num_classes": 4, "minibatch_kernels": 5, "spectral_norm": True}], ids=str,
)  # fmt: skip
def test_every_combination_makes_images_and_judges_them(build, options):
    model = build(**options)
    labels = torch.tensor([0, 3, 1]) if "num_classes" in options else None
    images = model.generate(torch.randn(3, 3), labels)
    logits, features = model.judge_with_features(images, labels)
    assert images.shape == (3, 1, 8, 8) and logits.shape == (3,) and features.dim() == 2
    model.eval()
    torch.testing.assert_close(model.judge(images, labels), model.judge_with_features(images, labels)[0])
    assert any(isinstance(m, MinibatchDiscrimination) for m in model.modules()) == ("minibatch_kernels" in options)
    twin = type(model)(**model.config)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin.eval().judge(images, labels), model.judge(images, labels))


@pytest.mark.parametrize("n", [8, 128])
def test_the_closeness_of_a_batch_does_not_outweigh_the_features_in_large_batches(n):
    torch.manual_seed(0)
    model = GAN(2, 128, 2, 16, bounded=False, minibatch_kernels=16, image_size=1)
    _, features = model.judge_with_features(model.generate(model.draw_latents(n)))
    assert features.shape == (n, 128 + 16) and features[:, 128:].max() <= 1


def test_a_label_changes_what_is_generated_and_how_it_is_judged(build):
    model = build(num_classes=3).eval()
    latents, labels = torch.randn(2, 3), torch.tensor([0, 2])
    images = model.generate(latents, labels)
    assert not torch.allclose(images, model.generate(latents, labels.flip(0)))
    assert not torch.equal(model.judge(images, labels), model.judge(images, labels.flip(0)))
    with pytest.raises(ValueError, match=r"condition: expected int64 labels \[2\] in 0 \.\. 2; got None"):
        model.generate(latents)
    with pytest.raises(ValueError, match="condition: this model has no classes; got Tensor"):
        build().generate(latents, labels)


def test_spectral_norm_bounds_the_largest_singular_value_of_every_layer(build):
    model = build(spectral_norm=True, minibatch_kernels=2)
    with torch.no_grad():
        for _ in range(50):  # each pass in training mode refines the estimate
            model.judge(torch.randn(4, 1, 8, 8))
    layers = [m for m in model.discriminator.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    assert len(layers) == (3 if isinstance(model, GAN) else 2)
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item()
        assert largest == pytest.approx(1, abs=1e-3)
    assert not any("parametrizations" in name for name, _ in model.generator.named_parameters())


def test_a_discriminator_without_batch_norm_judges_each_image_alone():
    model = DCGAN(1, 4, 3, discriminator_norm="none", image_size=16)
    assert without_batch_norm(model.discriminator) and not without_batch_norm(
        DCGAN(1, 4, 3, image_size=16).discriminator
    )
    images = torch.randn(3, 1, 16, 16)
    alone = torch.cat([model.judge(image[None]) for image in images])
    torch.testing.assert_close(model.judge(images), alone)


def test_a_seed_decides_the_samples(build):
    model = build()
    first, second = (model.sample(2, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second) and model.training
    with pytest.raises(ValueError, match=r"latents: expected \[2, 3\]; got shape \[2, 4\]"):
        model.sample(2, latents=torch.zeros(2, 4))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"minibatch_kernels": -1}, "minibatch_kernels: expected a whole number of at least 0; got -1"),
        ({"num_classes": 0}, "num_classes: expected a whole number of at least 1; got 0"),
    ],
)
def test_bad_arguments_are_named(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="discriminator_norm: expected 'batch' or 'none'; got 'layer'"):
        DCGAN(1, 4, 3, discriminator_norm="layer", image_size=8)
