"""The options of a VAE's training: classes, a divergence whose weight rises, and free bits."""

import pytest
import torch

from genkernels.models import VAE
from genkernels.train import Limits, start_run
from genkernels.train.data.batches import Batch, LabelledImages
from genkernels.train.errors import GenkernelsError
from genkernels.train.objectives import Drawing, Evaluating, VariationalObjective
from genkernels.train.optimization import Descent

SMALL = {"hidden_channels": 4, "latent_dim": 2}


def gradients(objective: VariationalObjective, step: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = VAE(1, 4, 3, image_size=8, beta=0.5).double()
    descent = Descent(torch.optim.SGD(model.parameters(), lr=0.0))
    images = torch.randint(0, 2, (6, 1, 8, 8), dtype=torch.uint8)
    objective.step(model, Batch(images, step=step), {"model": descent})
    got = [parameter.grad.clone() for parameter in model.parameters()]
    return [model, images, got]


@pytest.mark.parametrize("step, weight", [(0, 0.0), (25, 0.125), (100, 0.5), (1000, 0.5)])
def test_the_weight_of_the_divergence_rises_to_beta(step, weight):
    model, images, got = gradients(VariationalObjective(kl_warmup=100), step)
    torch.manual_seed(0)
    VAE(1, 4, 3, image_size=8)
    torch.randint(0, 2, (6, 1, 8, 8), dtype=torch.uint8)
    reconstruction, divergence = model.elbo_terms(images)
    loss = (weight * divergence.sum(1) - reconstruction).mean() / 64
    for a, b in zip(got, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12)


def test_free_bits_cost_nothing():
    model, images, got = gradients(VariationalObjective(free_bits=100.0), 0)
    torch.manual_seed(0)
    VAE(1, 4, 3, image_size=8)
    torch.randint(0, 2, (6, 1, 8, 8), dtype=torch.uint8)
    reconstruction, _ = model.elbo_terms(images)
    for a, b in zip(got, torch.autograd.grad(-reconstruction.mean() / 64, list(model.parameters())), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("recipe", ["vae", "pixelvae"])
def test_a_model_with_classes_is_trained_measured_and_drawn_with_labels(tmp_path, recipe):
    pytest.importorskip("sklearn", reason="the embedded digits need the extra 'cli'")
    trainer, _ = start_run(recipe, tmp_path, {"data": "digits", "batch_size": 200}, SMALL | {"num_classes": 10})
    trainer.run(Limits(steps=2))
    objective, model, test = trainer.objective, trainer.model, trainer.test.first(50)
    nats, _ = objective.evaluate(model, test, Evaluating())
    wrong, _ = objective.evaluate(model, LabelledImages(test.images, (test.labels + 1) % 10), Evaluating())
    assert nats.mean != wrong.mean
    drawn = [objective.sample(model, 3, Drawing(torch.Generator().manual_seed(0), label=label)) for label in (1, 2)]
    assert drawn[0].shape == (3, 1, 8, 8) and not torch.equal(*drawn)
    pictures = objective.pictures(model, test, 4, Drawing(torch.Generator().manual_seed(0)))
    assert pictures.keys() == {"samples", "reconstructions"}


@pytest.mark.parametrize("name", ["kl_warmup", "free_bits"])
def test_a_negative_option_is_refused(tmp_path, name):
    with pytest.raises(GenkernelsError, match=f"{name}: expected a number of at least 0; got -1"):
        start_run("vae", tmp_path, {"data": "digits"}, SMALL, {name: -1})
