"""What a run shows while it trains: images of some epochs, and TensorBoard's events; the run is as it is without."""

import sys

import pytest
import torch

from genkernels.train import Limits, resume_run, start_run
from genkernels.train.errors import MissingPackageError

RUNS = {
    "pixelcnn": ({"data": "digits", "batch_size": 500}, {"hidden_channels": 4, "num_layers": 1}),
    "vae": ({"data": "digits", "batch_size": 500}, {"hidden_channels": 4, "latent_dim": 2}),
    "autoencoder": ({"data": "digits", "batch_size": 500}, {"hidden_channels": 4, "latent_dim": 2}),
    "gan": ({"data": "ring", "batch_size": 5000}, {"latent_dim": 2}),
}


def start(recipe, folder, **watched):
    trainer, _ = start_run(recipe, folder, *RUNS[recipe])
    trainer.samples = 4
    for name, value in watched.items():
        setattr(trainer, name, value)
    return trainer


@pytest.mark.parametrize("recipe", RUNS)
def test_images_of_every_second_epoch_change_nothing_in_the_run(tmp_path, recipe):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    states = []
    for every in (None, 2):
        trainer = start(recipe, tmp_path / str(every), images_every=every)
        trainer.run(Limits(epochs=5 if recipe != "gan" else 3))
        states.append(trainer.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    name = "reconstructions" if recipe == "autoencoder" else "samples"
    expected = [f"{name}-{epoch}.png" for epoch in ((2, 4) if recipe != "gan" else (2,))]
    assert sorted(path.name for path in (tmp_path / "2").glob(f"{name}-*")) == expected
    assert not list((tmp_path / "None").glob("*.png"))


@pytest.mark.parametrize("recipe", ["pixelcnn", "vae", "gan"])
def test_images_of_unchanged_weights_are_the_same_at_every_epoch(tmp_path, recipe):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    trainer = start(recipe, tmp_path)
    trainer._draw()
    torch.rand(7)
    trainer.epoch = 3
    trainer._draw()
    assert (tmp_path / "samples-0.png").read_bytes() == (tmp_path / "samples-3.png").read_bytes()


def test_tensorboard_has_the_history_and_the_images_also_of_a_resumed_run(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra 'tensorboard'")
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = start("pixelcnn", tmp_path, images_every=5, tensorboard=True)
    trainer.run(Limits(steps=14))
    resumed, _ = resume_run("pixelcnn", tmp_path, {}, {})
    assert (resumed.images_every, resumed.tensorboard) == (5, True)
    resumed.run(Limits(steps=30))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    kept = [(event.step, event.value) for event in events.Scalars("train_nats")]
    expected = [(record["step"], record["train_nats"]) for record in resumed.history]
    assert [step for step, _ in kept] == [step for step, _ in expected] == [10, 20, 30]
    assert [value for _, value in kept] == pytest.approx([value for _, value in expected])
    images = events.Images("samples")
    assert [event.step for event in images] == [15, 30] and min(images[0].width, images[0].height) > 100


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    trainer = start("pixelcnn", tmp_path, tensorboard=True)
    with pytest.raises(MissingPackageError, match=r"--tensorboard needs tensorboard.*genkernels\[tensorboard\]"):
        trainer.run(Limits(steps=1))
    assert trainer.step == 0
