"""The options of the adversarial game: each loss and penalty against its formula, alone, together, and resumed."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from genkernels.models import DCGAN, GAN
from genkernels.train import Limits, resume_run, start_run
from genkernels.train.data.batches import Batch
from genkernels.train.data.points import MIXTURES
from genkernels.train.errors import GenkernelsError, TrainingError
from genkernels.train.objectives import AdversarialObjective, Drawing
from genkernels.train.objectives.adversarial import R1_INTERVAL
from genkernels.train.objectives.adversarial_losses import LOSSES, gradient_norms
from genkernels.train.optimization import Descent
from genkernels.train.point_metrics import mode_measures
from genkernels.train.recipes import RECIPES
from genkernels.train.settings import Settings

SMALL = {"hidden_channels": 4, "latent_dim": 2}
real, fake = torch.linspace(-2, 3, 7, dtype=torch.float64), torch.linspace(-4, 1, 5, dtype=torch.float64)
p, q = real.sigmoid(), fake.sigmoid()
FORMULAS = {
    "non-saturating": (-p.log().mean() - (1 - q).log().mean(), -q.log().mean()),
    "minimax": (-p.log().mean() - (1 - q).log().mean(), (1 - q).log().mean()),
    "hinge": (
        sum(max(0, 1 - r) for r in real.tolist()) / 7 + sum(max(0, 1 + f) for f in fake.tolist()) / 5, -fake.mean(),
    ),
    "wasserstein": (fake.mean() - real.mean(), -fake.mean()),
    "least-squares": (((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2, ((fake - 1) ** 2).mean() / 2),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula(name):
    assert LOSSES[name].discriminator(real, fake).item() == pytest.approx(float(FORMULAS[name][0]), rel=1e-12)
    assert LOSSES[name].generator(fake).item() == pytest.approx(float(FORMULAS[name][1]), rel=1e-12)


def play(objective, model, step=0, micro_batches=1, images=None):
    """The values of one step, and the gradients of both networks."""
    torch.manual_seed(5)
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8) if images is None else images
    descents = {
        name: Descent(
            torch.optim.SGD(getattr(model, name).parameters(), lr=0.0), history=objective.historical_averaging
        )
        for name in ("generator", "discriminator")
    }
    values = objective.step(model, Batch(images, step=step, micro_batches=micro_batches), descents)
    return values, [None if p.grad is None else p.grad.clone() for p in model.parameters()], images


def build(**options) -> GAN:
    torch.manual_seed(0)
    return GAN(1, 8, 2, 3, image_size=8, **options)


def gradient_of(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)


def assert_gradients(got, loss, network):
    for one, other in zip(got, gradient_of(loss, network), strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def setting(model):
    """What the step draws first: images, then latents."""
    torch.manual_seed(5)
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8).float() / 127.5 - 1
    return images, model.draw_latents(6)


def test_label_smoothing_is_one_sided():
    model = build()
    _, got, _ = play(AdversarialObjective(label_smoothing=0.1), model)
    images, latents = setting(model)
    real_logits, fake_logits = model.judge(images), model.judge(model.generate(latents).detach())
    loss = F.binary_cross_entropy_with_logits(real_logits, torch.full((6,), 0.9))
    loss = loss + F.binary_cross_entropy_with_logits(fake_logits, torch.zeros(6))
    assert_gradients(got[6:], loss, model.discriminator)


@pytest.mark.parametrize("make", [build, lambda: DCGAN(1, 4, 3, discriminator_norm="none", image_size=8)])
def test_the_gradient_penalty_is_taken_between_real_and_generated_images(make):
    torch.manual_seed(0)
    model = make()
    objective = AdversarialObjective(loss="wasserstein", gradient_penalty=10.0)
    _, got, _ = play(objective, model)
    images, latents = setting(model)
    generated = model.generate(latents).detach()
    share = torch.rand(6)[:, None, None, None]
    between = (share * images + (1 - share) * generated).requires_grad_()
    (slope,) = torch.autograd.grad(model.judge(between).sum(), between, create_graph=True)
    penalty = ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
    loss = model.judge(generated).mean() - model.judge(images).mean() + 10 * penalty
    assert_gradients(got[len(list(model.generator.parameters())) :], loss, model.discriminator)


@pytest.mark.parametrize("step, weight", [(0, R1_INTERVAL), (1, 0), (R1_INTERVAL, R1_INTERVAL)])
def test_r1_is_taken_now_and_then_and_as_much_heavier(step, weight):
    model = build()
    _, got, _ = play(AdversarialObjective(r1=0.5), model, step)
    images, latents = setting(model)
    loss = F.softplus(-model.judge(images)).mean() + F.softplus(model.judge(model.generate(latents).detach())).mean()
    loss = loss + 0.5 * weight * 0.5 * gradient_norms(model.judge, images).square().mean()
    assert_gradients(got[6:], loss, model.discriminator)


def test_feature_matching_is_the_distance_of_the_mean_features():
    model = build()
    _, got, _ = play(AdversarialObjective(feature_matching=2.0), model)
    images, latents = setting(model)
    logits, features = model.judge_with_features(model.generate(latents))
    wanted = model.judge_with_features(images)[1].mean(0).detach()
    loss = F.softplus(-logits).mean() + 2 * (features.mean(0) - wanted).square().sum()
    assert_gradients(got[:6], loss, model.generator)


def test_historical_averaging_pulls_to_the_mean_of_the_past():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    descent = Descent(torch.optim.SGD([weight], lr=0.1), history=3.0)
    past = []
    for _ in range(4):
        past.append(weight.detach().clone())
        mean = torch.stack(past).mean(0)
        twin = weight.detach().clone().requires_grad_()
        expected = twin.square().sum() + 3 * (twin - mean).square().sum()
        (slope,) = torch.autograd.grad(expected, twin)
        found = descent.step([weight.square().sum()])
        assert found.loss == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(past[-1] - 0.1 * slope, weight.detach())


def test_the_generator_waits_for_the_critic():
    objective = AdversarialObjective(loss="wasserstein", critic_steps=3)
    told = ["generator_loss" in play(objective, build(), step)[0] for step in range(6)]
    assert told == [False, False, True, False, False, True]


@pytest.mark.parametrize("micro_batches", [2, 6])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(micro_batches):
    whole, expected, _ = play(AdversarialObjective(), build())
    parts, got, _ = play(AdversarialObjective(), build(), micro_batches=micro_batches)
    assert parts == pytest.approx(whole, rel=1e-5)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


OBJECTIVES = {
    "loss": {"loss": "hinge"}, "critic_steps": {"critic_steps": 2}, "gradient_penalty": {"gradient_penalty": 1.0},
    "r1": {"r1": 0.1}, "feature_matching": {"feature_matching": 1.0},
    "historical_averaging": {"historical_averaging": 0.1},
}  # fmt: skip
MODELS = {"minibatch": {"minibatch_kernels": 3}, "spectral": {"spectral_norm": True}, "classes": {"num_classes": 10}}
PAIRS = list(itertools.combinations([*OBJECTIVES, *MODELS], 2))


@pytest.mark.parametrize("recipe", ["gan", "dcgan"])
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_any_two_options_go_together_and_are_resumed_without_a_trace(tmp_path, recipe, pair):
    pytest.importorskip("sklearn", reason="the embedded digits need the extra 'cli'")
    model, objective = dict(SMALL), {}
    for name in pair:
        (objective if name in OBJECTIVES else model).update((OBJECTIVES | MODELS)[name])
    if "gradient_penalty" in pair and recipe == "dcgan":
        model["discriminator_norm"] = "none"

    def start(folder):
        return start_run(recipe, folder, {"data": "digits", "batch_size": 100}, model, objective)[0]

    whole = start(tmp_path / "whole")
    whole.run(Limits(steps=4))
    start(tmp_path / "parts").run(Limits(steps=2))
    resumed, _ = resume_run(recipe, tmp_path / "parts", {}, {})
    resumed.run(Limits(steps=4))
    found = resumed.model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in whole.model.state_dict().items())


def test_a_gan_learns_the_ring(tmp_path):
    options = {"hidden_channels": 128, "num_layers": 2, "latent_dim": 16}
    trainer, dataset = start_run("gan", tmp_path, {"data": "ring", "batch_size": 128, "learning_rate": 1e-3}, options)
    trainer.run(Limits(steps=1500))
    points = trainer.objective.sample(trainer.model, 1000, Drawing(torch.Generator().manual_seed(0))).flatten(1)
    radius = points.norm(dim=1)
    assert dataset.mixture is not None and trainer.model.config["bounded"] is False
    assert ((radius - 2).abs() < 0.3).float().mean() > 0.6
    assert trainer.latest("test_missed_modes") < 8


@pytest.mark.parametrize("name", MIXTURES)
def test_modes_and_good_points_are_counted(name):
    mixture = MIXTURES[name]
    points, modes = mixture.draw(10_000, torch.Generator().manual_seed(1))
    missed, good = mode_measures(points.flatten(1), mixture)
    assert missed.mean == 0 and good.mean == pytest.approx(1 - torch.tensor(-4.5).exp().item(), abs=0.005)
    missed, good = mode_measures(points.flatten(1)[modes < 3], mixture)
    assert missed.mean == len(mixture.centres) - 3
    missed, good = mode_measures(points.flatten(1) + 10 * mixture.spread, mixture)
    assert missed.mean == len(mixture.centres) and good.mean < 0.001


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"loss": "cross"},
            "loss: expected one of non-saturating, minimax, hinge, wasserstein, least-squares; got 'cross'",
        ),
        ({"label_smoothing": 0.1, "loss": "hinge"}, "label_smoothing: expected a number below 0.5 and the loss"),
        ({"critic_steps": 0}, "critic_steps: expected a whole number of at least 1; got 0"),
        ({"r1": -1.0}, "r1: expected a number of at least 0; got -1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, options, message):
    pytest.importorskip("sklearn", reason="the embedded digits need the extra 'cli'")
    with pytest.raises(GenkernelsError, match=message):
        start_run("dcgan", tmp_path, {"data": "digits"}, SMALL, options)


def test_a_gradient_penalty_is_refused_where_batch_norm_mixes_the_images():
    settings = Settings("digits", None, 16, 1e-3, "adam", 1.0, 0)
    with pytest.raises(GenkernelsError, match="gradient_penalty: the discriminator has batch normalisation"):
        AdversarialObjective(gradient_penalty=10.0).descents(DCGAN(1, 4, 3, image_size=16), settings)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "gan"])
def test_points_are_refused_by_families_of_images(tmp_path, recipe):
    with pytest.raises(TrainingError, match=f"data: ring holds points of the plane; {recipe} takes images"):
        start_run(recipe, tmp_path, {"data": "ring"}, {})
