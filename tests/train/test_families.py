"""One loop for all families: VAE, autoencoder and DCGAN resume, stop, measure and show as PixelCNN does."""

import os
import signal

import pytest
import torch

from genkernels.models import DCGAN, GAN, VAE, AdversarialAutoencoder, Autoencoder, Classifier, PixelVAE
from genkernels.train import Limits, resume_run, start_run
from genkernels.train.checkpoint import load_model, read_checkpoint
from genkernels.train.errors import GenkernelsError, TrainingError
from genkernels.train.objectives import Drawing, Evaluating
from genkernels.train.recipes import RECIPES

pytest.importorskip("sklearn", reason="the embedded digits need the extra 'cli'")

FAMILIES = {
    "vae": VAE,
    "pixelvae": PixelVAE,
    "autoencoder": Autoencoder,
    "adversarial-autoencoder": AdversarialAutoencoder,
    "gan": GAN,
    "dcgan": DCGAN,
    "classifier": Classifier,
}
SMALL = {"hidden_channels": 4, "latent_dim": 2}


def start(recipe, folder, options=SMALL, **settings):
    return start_run(recipe, folder, {"data": "digits", "batch_size": 200, **settings}, options)[0]


def assert_same_state(a, b):
    assert (a.step, a.epoch, a.batch) == (b.step, b.epoch, b.batch)
    for name, value in a.model.state_dict().items():
        assert torch.equal(b.model.state_dict()[name], value), name
    assert a.descents.keys() == b.descents.keys()
    for key in a.descents:
        states = (run.descents[key].optimizer.state_dict()["state"] for run in (a, b))
        for left, right in zip(*(state.values() for state in states), strict=True):
            assert all(torch.equal(right[name], value) for name, value in left.items())
    histories = ([{k: v for k, v in record.items() if k != "seconds"} for record in run.history] for run in (a, b))
    assert next(histories) == next(histories)


@pytest.mark.parametrize("recipe", FAMILIES)
def test_a_run_that_is_stopped_by_ctrl_c_and_resumed_is_the_uninterrupted_run(tmp_path, recipe):
    whole = start(recipe, tmp_path / "whole")
    whole.run(Limits(steps=13))
    assert len(whole.history) == 1
    parts = start(recipe, tmp_path / "parts")

    def press_ctrl_c(done):
        if parts.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    assert parts.run(Limits(steps=13), press_ctrl_c) is False and parts.step == 7
    torch.manual_seed(12345)  # whatever another process did with its random numbers
    resumed, _ = resume_run(recipe, tmp_path / "parts", {}, {})
    resumed.run(resumed.limits)
    assert_same_state(whole, resumed)


@pytest.mark.parametrize("recipe", FAMILIES)
def test_a_checkpoint_gives_back_the_model_and_every_optimiser(tmp_path, recipe):
    trainer = start(recipe, tmp_path)
    trainer.run(Limits(steps=2))
    content = read_checkpoint(tmp_path / "model.pt")  # with weights_only=True
    assert content["optimizers"].keys() == trainer.descents.keys()
    model, _ = load_model(tmp_path / "model.pt")
    assert isinstance(model, FAMILIES[recipe]) and not model.training
    assert all(torch.equal(model.state_dict()[name], value) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    "recipe, key, share",
    [("vae", "test_nats", 0.75), ("autoencoder", "test_error", 0.25), ("classifier", "test_nats", 0.25)],
    ids=["vae", "autoencoder", "classifier"],
)
def test_training_lowers_the_loss_of_digits_it_has_not_seen(tmp_path, recipe, key, share):
    trainer = start(recipe, tmp_path, {"hidden_channels": 8, "latent_dim": 8}, batch_size=100, learning_rate=5e-3)
    trainer.run(Limits(steps=10))
    trainer._evaluate()
    before = trainer.latest(key)
    trainer.run(Limits(steps=100))
    assert trainer.latest(key) < share * before


def test_dcgan_learns_where_the_ink_is(tmp_path):
    """Two losses that pull against each other need not fall; the images must come to look like the real ones."""
    trainer = start("dcgan", tmp_path, {"hidden_channels": 16, "latent_dim": 8}, batch_size=64, learning_rate=1e-3)
    real = trainer.train.images.float().mean(0) / 127.5 - 1

    def distance() -> float:
        drawn = trainer.model.sample(256, generator=torch.Generator().manual_seed(0)).mean(0)
        return (drawn - real).abs().mean().item()

    before = distance()
    trainer.run(Limits(steps=120))
    assert before > 0.5 and distance() < 0.4 * before
    assert 0 < trainer.latest("fake_score") < trainer.latest("real_score") < 1


def test_dcgan_has_the_optimisers_of_the_paper(tmp_path):
    trainer = start_run("dcgan", tmp_path, {"data": "digits"}, SMALL)[0]
    chosen = trainer.settings
    assert (chosen.batch_size, chosen.learning_rate, chosen.optimizer, chosen.clip) == (128, 2e-4, "adam", float("inf"))
    for name in ("generator", "discriminator"):
        (group,) = trainer.descents[name].optimizer.param_groups
        assert isinstance(trainer.descents[name].optimizer, torch.optim.Adam)
        assert (group["lr"], group["betas"]) == (2e-4, (0.5, 0.999))
        own = list(getattr(trainer.model, name).parameters())
        assert len(own) == len(group["params"]) and all(a is b for a, b in zip(own, group["params"], strict=True))


def test_dcgan_sees_images_in_the_range_of_its_generator(tmp_path):
    trainer = start("dcgan", tmp_path)
    seen = []
    trainer.model.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    trainer._one_step()
    assert (seen[0].min(), seen[0].max()) == (-1, 1)
    assert seen[1].min() >= -1 and seen[1].max() <= 1 and seen[1].shape == seen[0].shape


def test_a_vae_takes_its_levels_from_its_likelihood_and_the_data(tmp_path):
    for name, options, levels in (
        ("a", {}, 2), ("b", {"likelihood": "categorical"}, 17), ("c", {"likelihood": "gaussian", "levels": 256}, 256),
    ):  # fmt: skip
        trainer = start("vae", tmp_path / name, SMALL | options)
        assert trainer.model.levels == levels and trainer.train.images.max() == levels - 1
        trainer.run(Limits(steps=1))


def test_a_vae_is_measured_by_its_bound_whatever_its_beta_and_the_same_every_time(tmp_path):
    trainer = start("vae", tmp_path, SMALL | {"beta": 0.0})
    trainer.run(Limits(steps=10))
    model, test, objective = trainer.model.eval(), trainer.test, trainer.objective
    images = test.images
    nats, kl = objective.evaluate(model, test, Evaluating())
    elbo = model.elbo(images, generator=torch.Generator().manual_seed(0)).mean().item()
    assert nats.mean == pytest.approx(-elbo, abs=5 * nats.standard_error) and kl.mean > 0
    assert objective.evaluate(model, test, Evaluating()) == [nats, kl]
    (weighted,) = objective.evaluate(model, test, Evaluating(importance_samples=30))
    assert weighted.mean < nats.mean and weighted.images == nats.images == 299
    record = trainer.history[-1]
    assert record["train_nats"] > 0 and record["train_kl"] > 0


@pytest.mark.parametrize(
    "recipe, part",
    [
        ("vae", "encoder"),
        ("vae", "decoder"),
        ("pixelvae", "encoder"),
        ("pixelvae", "pixelcnn"),
        ("autoencoder", "encoder"),
        ("autoencoder", "decoder"),
        ("adversarial-autoencoder", "encoder"),
        ("adversarial-autoencoder", "discriminator"),
        ("gan", "generator"),
        ("gan", "discriminator"),
        ("dcgan", "generator"),
        ("dcgan", "discriminator"),
        ("classifier", "encoder"),
    ],
)
def test_weights_that_are_not_finite_stop_with_the_last_good_checkpoint(tmp_path, recipe, part):
    trainer = start(recipe, tmp_path)
    trainer.run(Limits(steps=3))
    good = read_checkpoint(tmp_path / "model.pt")["model"]
    with torch.no_grad():
        next(getattr(trainer.model, part).parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"loss became nan at step 4.*; the checkpoint of step 3 is kept in"):
        trainer.run(Limits(steps=6))
    kept = read_checkpoint(tmp_path / "model.pt")["model"]
    assert all(torch.equal(kept[name], value) and value.isfinite().all() for name, value in good.items())


PICTURES = {
    "pixelcnn": {"samples": ["samples", "real"]},
    "vae": {"samples": ["samples", "real"], "reconstructions": ["real", "reconstructed"],
            "latent_grid": ["decoded over the plane of codes"]},
    "pixelvae": {"samples": ["samples", "real"], "reconstructions": ["real", "reconstructed"],
                 "latent_grid": ["decoded over the plane of codes"]},
    "autoencoder": {"reconstructions": ["real", "reconstructed"]},
    "adversarial-autoencoder": {"samples": ["samples", "real"], "reconstructions": ["real", "reconstructed"]},
    "gan": {"samples": ["samples", "real"]},
    "dcgan": {"samples": ["samples", "real"]},
    "classifier": {},
}  # fmt: skip


@pytest.mark.parametrize("recipe", PICTURES)
def test_a_run_shows_the_pictures_of_its_family(tmp_path, recipe):
    options = {"hidden_channels": 4, "num_layers": 1} if recipe == "pixelcnn" else SMALL
    trainer = start(recipe, tmp_path, options)
    pictures = trainer.objective.pictures(trainer.model, trainer.test, 5, Drawing(torch.Generator().manual_seed(0)))
    assert {name: list(grids) for name, grids in pictures.items()} == PICTURES[recipe]
    for grids in pictures.values():
        for title, images in grids.items():
            assert images.dtype == torch.uint8 and images.shape[1:] == (1, 8, 8)
            assert len(images) == (225 if title.startswith("decoded") else 5)
            if title == "real":
                assert (images.min(), images.max()) == (0, 255)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_curve_is_an_entry_of_the_history(tmp_path, recipe):
    options = (
        SMALL
        if recipe in FAMILIES
        else {}
        if recipe == "fvbn"
        else {"hidden_channels": 4}
        if recipe == "gan"
        else {"hidden_channels": 2, "num_layers": 1}
    )
    trainer = start(recipe, tmp_path, options)
    trainer._one_step()
    trainer._record()
    trainer._evaluate()
    assert all(isinstance(trainer.latest(key), float) for key in trainer.objective.curves)
    assert (trainer.objective.unmeasured is None) == (len(trainer.history) == 2)


@pytest.mark.parametrize(
    "recipe, options, message",
    [
        ("dcgan", {"levels": 4}, "levels: this model has no such option; it has discriminator_norm, hidden_channels"),
        ("vae", {"levels": 4}, "levels: a Bernoulli likelihood takes 2; got 4"),
        ("vae", {"num_layers": 4}, "num_layers: this model has no such option"),
    ],
)
def test_an_option_that_a_family_does_not_have_is_named(tmp_path, recipe, options, message):
    with pytest.raises(GenkernelsError, match=message):
        start(recipe, tmp_path, options)
