"""Training: resumed is the same as never interrupted, and no failure costs the last checkpoint."""

import json
import os
import signal

import pytest
import torch

from genkernels.models import PixelCNN
from genkernels.train import Limits, resume_run, start_run
from genkernels.train.atomic_write import write_atomically
from genkernels.train.checkpoint import load_model, read_checkpoint, save_checkpoint
from genkernels.train.data.batches import Batch
from genkernels.train.errors import CheckpointError, GenkernelsError, TrainingError
from genkernels.train.loop import Trainer
from genkernels.train.objectives import LikelihoodObjective
from genkernels.train.optimization import Descent, NotFiniteError
from genkernels.train.recipes import find_recipe
from genkernels.train.settings import Settings

SMALL = {"hidden_channels": 4, "num_layers": 1}


def start(folder, **settings):
    trainer, _ = start_run("pixelcnn", folder, {"data": "digits", "batch_size": 200, **settings}, SMALL)
    return trainer


def resume(folder, **settings):
    return resume_run("pixelcnn", folder, settings, {})[0]


def assert_same_state(a: Trainer, b: Trainer) -> None:
    assert (a.step, a.epoch, a.batch) == (b.step, b.epoch, b.batch)
    for name, value in a.model.state_dict().items():
        assert torch.equal(b.model.state_dict()[name], value), name
    assert a.descents.keys() == b.descents.keys()
    for key in a.descents:
        for left, right in zip(
            *(t.descents[key].optimizer.state_dict()["state"].values() for t in (a, b)), strict=True
        ):
            for name, value in left.items():
                assert torch.equal(right[name], value), name


def without_time(history):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


# --- resuming -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("stop", [3, 8, 13], ids=lambda n: f"after {n} steps")  # 8 steps are an epoch
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, optimizer, stop):
    whole = start(tmp_path / "whole", optimizer=optimizer)
    whole.run(Limits(steps=20))
    start(tmp_path / "parts", optimizer=optimizer).run(Limits(steps=stop))
    torch.manual_seed(12345)  # whatever another process did with its random numbers
    resumed = resume(tmp_path / "parts")
    assert resumed.step == stop
    resumed.run(Limits(steps=20))
    assert_same_state(whole, resumed)
    assert without_time(whole.history) == without_time(resumed.history)
    assert torch.equal(torch.rand(3), torch.rand(3)) is False  # the generators go on, and are no constants


def test_a_resumed_run_continues_the_random_numbers(tmp_path):
    trainer = start(tmp_path)
    trainer.run(Limits(steps=1))
    expected = torch.rand(5)
    resume(tmp_path)
    assert torch.equal(torch.rand(5), expected)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    runs = [start(tmp_path / str(i), seed=seed) for i, seed in enumerate((3, 3, 4))]
    for run in runs:
        run.run(Limits(steps=2))
    assert_same_state(runs[0], runs[1])
    assert not torch.equal(runs[0].model.layers[0].weight, runs[2].model.layers[0].weight)


def test_every_image_is_used_once_in_an_epoch(tmp_path):
    trainer = start(tmp_path)
    seen = []
    for _ in range(len(trainer.batches)):
        seen += trainer.batches.indices(trainer.epoch, trainer.batch).tolist()
        trainer._one_step()
    assert sorted(seen) == list(range(1498)) and seen != sorted(seen)
    assert (trainer.epoch, trainer.batch) == (1, 0)
    assert trainer.batches.indices(trainer.epoch, trainer.batch).tolist() != seen[:200]


def test_a_resumed_run_cannot_be_given_other_settings(tmp_path):
    start(tmp_path).run(Limits(steps=1))
    with pytest.raises(TrainingError, match=r"learning_rate: .* has 0.0005; it cannot go on with 0.5"):
        resume(tmp_path, learning_rate=0.5)
    with pytest.raises(TrainingError, match=r"hidden_channels: .* has 4; it cannot go on with 8"):
        resume_run("pixelcnn", tmp_path, {}, {"hidden_channels": 8})
    resume_run("pixelcnn", tmp_path, {"data": "digits", "batch_size": 200}, SMALL)  # what it has, it may be told


def test_a_run_is_not_overwritten_unasked(tmp_path):
    start(tmp_path).run(Limits(steps=1))
    with pytest.raises(TrainingError, match="holds a run already"):
        start(tmp_path)
    trainer, _ = start_run("pixelcnn", tmp_path, {"data": "digits"}, SMALL, overwrite=True)
    assert trainer.step == 0


# --- stopping -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits, steps", [(Limits(steps=3), 3), (Limits(epochs=1), 8), (Limits(2, 9), 9)])
def test_training_stops_at_the_first_limit(tmp_path, limits, steps):
    trainer = start(tmp_path)
    shares = []
    assert trainer.run(limits, shares.append) is True
    assert trainer.step == steps == len(shares)
    assert shares == sorted(shares) and shares[-1] == 1
    assert read_checkpoint(tmp_path / "model.pt")["progress"]["step"] == steps


def test_minutes_limit_this_part_of_the_run(tmp_path):
    trainer = start(tmp_path)
    trainer.run(Limits(minutes=0.3 / 60))
    first = trainer.step
    assert first > 0 and trainer.seconds >= 0.3
    trainer.run(Limits(minutes=0.3 / 60))
    assert trainer.step > first and trainer.seconds >= 0.6


def test_ctrl_c_finishes_the_step_saves_and_says_so(tmp_path):
    whole = start(tmp_path / "whole")
    whole.run(Limits(steps=6))
    trainer = start(tmp_path / "parts")
    previous = signal.getsignal(signal.SIGINT)

    def press_ctrl_c(done):
        if trainer.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    assert trainer.run(Limits(steps=6), press_ctrl_c) is False
    assert trainer.step == 4
    assert signal.getsignal(signal.SIGINT) is previous
    resumed = resume(tmp_path / "parts")
    assert resumed.step == 4 and resumed.limits == Limits(steps=6)
    resumed.run(resumed.limits)
    assert_same_state(whole, resumed)


def test_a_second_ctrl_c_ends_at_once_with_the_last_checkpoint_whole(tmp_path):
    trainer = start(tmp_path)

    def press_twice(done):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer.run(Limits(steps=6), press_twice)
    assert resume(tmp_path).step == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path, value):
    trainer = start(tmp_path)
    trainer.run(Limits(steps=3))
    good = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with torch.no_grad():
        trainer.model.layers[-1].weight[0, 0] = value
    with pytest.raises(TrainingError, match=r"loss became nan at step 4.*; the checkpoint of step 3 is kept in"):
        trainer.run(Limits(steps=6))
    model, _ = load_model(tmp_path / "model.pt")
    for name, tensor in good.items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path):
    trainer = start(tmp_path)
    trainer.model.layers[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    before = trainer.model.layers[1].weight.clone()
    with pytest.raises(TrainingError, match="the gradient's norm became"):
        trainer.run(Limits(steps=2))
    assert torch.equal(trainer.model.layers[1].weight, before)


# --- what a run leaves ----------------------------------------------------------------------------------


def test_training_lowers_the_nats_of_digits_it_has_not_seen(tmp_path):
    trainer, _ = start_run(
        "pixelcnn", tmp_path, {"data": "digits", "batch_size": 64, "learning_rate": 5e-3, "clip": 5.0}, SMALL
    )
    trainer.run(Limits(steps=100))
    assert trainer.latest("test_nats") < 0.7 * 64 * torch.tensor(17.0).log().item()


def test_the_history_is_one_json_object_per_line(tmp_path):
    trainer = start(tmp_path)
    trainer.run(Limits(steps=100))
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines == trainer.history
    assert [line["step"] for line in lines if "train_nats" in line] == list(range(10, 101, 10))
    (last,) = (line for line in lines if "test_nats" in line)
    assert last["step"] == 100 and last["epoch"] == 12.5
    assert last["test_bits_per_dim"] == pytest.approx(last["test_nats"] / 64 / 0.6931471805599453)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"optimizer": "lion"}, "optimizer: unknown 'lion'; expected one of: adam, adamw, rmsprop, sgd"),
        ({"batch_size": 0}, "batch_size: expected a number above 0; got 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number above 0"),
        ({"clip": -1.0}, "clip: expected a number above 0"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, settings, message):
    with pytest.raises(TrainingError, match=message):
        start(tmp_path, **settings)


@pytest.mark.parametrize(
    "recipe, options, message",
    [
        ("pixelsnail", {}, "unknown model 'pixelsnail'; expected one of: fvbn, pixelcnn"),
        ("pixelcnn", {"hidden_channels": 0}, "hidden_channels: expected a whole number of at least 1; got 0"),
        ("pixelcnn", {"latent_dim": 3}, "latent_dim: this model has no such option"),
    ],
)
def test_a_wrong_model_or_model_option_is_named(tmp_path, recipe, options, message):
    with pytest.raises(GenkernelsError, match=message):
        start_run(recipe, tmp_path, {"data": "digits"}, options)


# --- checkpoints and files ------------------------------------------------------------------------------


def test_a_checkpoint_gives_back_the_model(tmp_path):
    model = PixelCNN(3, 6, 1, 4, residual=True, head_channels=5, image_size=(3, 5))
    save_checkpoint(tmp_path / "model.pt", find_recipe("pixelcnn"), LikelihoodObjective(), model, {"data": "digits"})
    twin, content = load_model(tmp_path / "model.pt")
    images = torch.randint(0, 4, (2, 3, 3, 5))
    assert torch.equal(twin(images), model(images)) and not twin.training
    assert content["settings"] == {"data": "digits"}


def damage(path, kind):
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no checkpoint\n")
    elif kind == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "code":
        torch.save({"format": "genkernels-checkpoint-1", "recipe": os.getpid}, path)
    elif kind == "no config":
        saved = torch.load(path, weights_only=True)
        del saved["config"]
        torch.save(saved, path)
    elif kind == "other weights":
        saved = torch.load(path, weights_only=True)
        saved["config"]["hidden_channels"] += 1
        torch.save(saved, path)
    elif kind == "other recipe":
        saved = torch.load(path, weights_only=True)
        saved["recipe"] = "pixelsnail"
        torch.save(saved, path)
    elif kind == "missing":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    "kind, message",
    [
        ("truncated", "damaged, or not a checkpoint"),
        ("empty", "damaged, or not a checkpoint"),
        ("text", "damaged, or not a checkpoint"),
        ("code", "damaged, or not a checkpoint"),
        ("other", "not a genkernels checkpoint"),
        ("tensor", "not a genkernels checkpoint"),
        ("no config", "it has no 'config'"),
        ("other weights", "its weights and its configuration do not fit"),
        ("other recipe", "unknown model 'pixelsnail'"),
        ("missing", "there is no checkpoint"),
        ("folder", "there is no checkpoint"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_says_why(tmp_path, kind, message):
    path = tmp_path / "model.pt"
    save_checkpoint(
        path, find_recipe("pixelcnn"), LikelihoodObjective(), PixelCNN(levels=2, **SMALL), {"data": "digits"}
    )
    damage(path, kind)
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(path)
    assert str(path) in str(error.value)


def test_a_checkpoint_without_a_run_is_not_resumed(tmp_path):
    settings = Settings("digits", None, 16, 1e-3, "adam", 1.0, 0)
    model = PixelCNN(levels=17, image_size=8, **SMALL)
    save_checkpoint(tmp_path / "model.pt", find_recipe("pixelcnn"), LikelihoodObjective(), model, {"data": "digits"})
    with pytest.raises(TrainingError, match="not a run that can be resumed"):
        resume(tmp_path)
    save_checkpoint(tmp_path / "model.pt", find_recipe("pixelcnn"), LikelihoodObjective(), model, vars(settings))
    with pytest.raises(TrainingError, match="not a run that can be resumed: 'progress'"):
        resume(tmp_path)


def test_a_new_file_takes_the_place_of_the_old_one_and_never_changes_it(tmp_path):
    path = tmp_path / "model.pt"
    write_atomically(path, lambda file: file.write(b"old"))
    with open(path, "rb") as reader:
        write_atomically(path, lambda file: file.write(b"new"))
        assert reader.read() == b"old" and path.read_bytes() == b"new"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "model.pt"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]


# --- steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["pixelcnn", "autoencoder"])
@pytest.mark.parametrize("parts", [3, 200])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path, recipe, parts):
    options = SMALL if recipe == "pixelcnn" else {"hidden_channels": 4, "latent_dim": 2}
    trainer, _ = start_run(recipe, tmp_path, {"data": "digits", "batch_size": 7}, options)
    model = trainer.model.eval()  # batch normalisation has the statistics of a part
    batch = trainer.batches.batch(0, 0, torch.device("cpu"))
    found = []
    for micro_batches in (1, parts):
        descent = Descent(torch.optim.SGD(model.parameters(), lr=0.0))
        values = trainer.objective.step(model, Batch(batch.images, micro_batches=micro_batches), {"model": descent})
        found.append((values, [parameter.grad.clone() for parameter in model.parameters()]))
    (whole, expected), (split, got) = found
    assert split == pytest.approx(whole, rel=1e-5)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_moves_no_weight():
    weight = torch.nn.Parameter(torch.ones(3))
    descent = Descent(torch.optim.SGD([weight], lr=1.0))
    with pytest.raises(NotFiniteError, match="the loss became inf"):
        descent.step([weight.sum(), weight.sum() * float("inf")])
    with pytest.raises(NotFiniteError, match="the gradient's norm became inf"):
        descent.step([(weight - 1).sum().sqrt()])
    assert torch.equal(weight, torch.ones(3))
