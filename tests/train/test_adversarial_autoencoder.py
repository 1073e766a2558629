"""The steps of an adversarial autoencoder: each phase moves its own networks, and the codes come to match the prior."""

import pytest
import torch

from genkernels.models import AdversarialAutoencoder
from genkernels.train.data.batches import Batch
from genkernels.train.objectives import AdversarialAutoencoderObjective, Evaluating
from genkernels.train.optimization import Descent


def run(model, rates, images, steps=1, micro_batches=1):
    parts = {
        "reconstruction": [*model.encoder.parameters(), *model.decoder.parameters()],
        "discriminator": list(model.discriminator.parameters()),
        "encoder": list(model.encoder.parameters()),
    }
    descents = {name: Descent(torch.optim.Adam(parts[name], lr=rates.get(name, 0.0))) for name in parts}
    objective = AdversarialAutoencoderObjective()
    return [objective.step(model, Batch(images, micro_batches=micro_batches), descents) for _ in range(steps)]


@pytest.mark.parametrize("phase, moved", [
    ("reconstruction", {"encoder", "decoder"}), ("discriminator", {"discriminator"}), ("encoder", {"encoder"}),
])  # fmt: skip
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_phase_moves_its_own_networks_alone(phase, moved, micro_batches):
    torch.manual_seed(0)
    model = AdversarialAutoencoder(1, 4, 3, discriminator_units=5, image_size=8)
    before = {name: value.clone() for name, value in model.named_parameters()}
    run(model, {phase: 1e-2}, torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), micro_batches=micro_batches)
    for name in ("encoder", "decoder", "discriminator"):
        same = [torch.equal(before[key], value) for key, value in model.named_parameters() if key.startswith(name)]
        assert all(same) == (name not in moved)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_codes_come_to_match_the_prior():
    torch.manual_seed(0)
    model = AdversarialAutoencoder(1, 8, 2, discriminator_units=32, image_size=8)
    images = torch.randint(0, 256, (256, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        model.encoder[-2].weight.mul_(5)  # codes far from the prior
    objective = AdversarialAutoencoderObjective()

    def distance() -> float:
        error, distance = objective.evaluate(model, Batch(images), Evaluating())
        assert (error.key, distance.key, error.images) == ("error", "code_distance", 256)
        return distance.mean

    before = distance()
    run(model, {"reconstruction": 1e-3, "discriminator": 3e-3, "encoder": 3e-3}, images, steps=150)
    assert before > 1 and distance() < before / 3
