"""Schedules, averages, accumulation, precision and weight decay: each is what it says, and resumed without a trace."""

import math

import pytest
import torch

from genkernels.train import Limits, resume_run, start_run
from genkernels.train.checkpoint import load_model, read_checkpoint
from genkernels.train.errors import TrainingError
from genkernels.train.schedule import factor

pytest.importorskip("sklearn", reason="the embedded digits need the extra 'cli'")

SMALL = {"hidden_channels": 4, "num_layers": 1}


def start(folder, recipe="pixelcnn", options=SMALL, limits=None, **settings):
    return start_run(recipe, folder, {"data": "digits", "batch_size": 200, **settings}, options, limits=limits)[0]


VARIANTS = {
    "ema": {"ema": 0.9},
    "cosine": {"schedule": "cosine", "schedule_steps": 10, "warmup": 3},
    "step": {"schedule": "step", "schedule_steps": 10},
    "accumulate": {"micro_batches": 3},
    "bfloat16": {"precision": "bfloat16"},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "sgd": {"optimizer": "sgd", "weight_decay": 0.1},
    "all": {"ema": 0.9, "schedule": "cosine", "schedule_steps": 10, "warmup": 2, "micro_batches": 2,
            "precision": "bfloat16", "optimizer": "adamw", "weight_decay": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("recipe", ["pixelcnn", "dcgan"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, name, recipe):
    options = SMALL if recipe == "pixelcnn" else {"hidden_channels": 4, "latent_dim": 2}
    settings = VARIANTS[name]
    whole = start(tmp_path / "whole", recipe, options, **settings)
    whole.run(Limits(steps=10))
    start(tmp_path / "parts", recipe, options, **settings).run(Limits(steps=4))
    torch.manual_seed(12345)
    resumed, _ = resume_run(recipe, tmp_path / "parts", {}, {})
    resumed.run(Limits(steps=10))
    for of in ("model", "result"):
        found, expected = getattr(resumed, of).state_dict(), getattr(whole, of).state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items()), of
    for key, descent in whole.descents.items():
        (one,), (other,) = descent.optimizer.param_groups, resumed.descents[key].optimizer.param_groups
        assert one["lr"] == other["lr"] and one["weight_decay"] == other["weight_decay"]


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", lambda t: 1.0),
        ("cosine", lambda t: 0.5 * (1 + math.cos(math.pi * (t - 10) / 100))),
        ("step", lambda t: 1.0 if t < 60 else 0.1 if t < 85 else 0.01),
    ],
)
def test_a_schedule_begins_behind_the_warm_up_and_ends_with_the_run(schedule, expected):
    rate = factor(schedule, 10, 110)
    assert [rate(t) for t in range(10)] == pytest.approx([(t + 1) / 10 for t in range(10)])
    assert [rate(t) for t in range(10, 110)] == pytest.approx([expected(t) for t in range(10, 110)])
    assert rate(500) == pytest.approx(expected(110) if schedule != "step" else 0.01)


def test_the_learning_rate_of_each_step_is_that_of_the_schedule(tmp_path):
    trainer = start(tmp_path, schedule="cosine", warmup=2, learning_rate=0.01, limits=Limits(steps=6))
    assert trainer.settings.schedule_steps == 6
    rates = []
    for _ in range(6):
        rates.append(trainer.descents["model"].optimizer.param_groups[0]["lr"])
        trainer._one_step()
    assert rates == pytest.approx([0.01 * factor("cosine", 2, 6)(t) for t in range(6)])


def test_epochs_give_a_schedule_its_length_and_minutes_do_not(tmp_path):
    assert start(tmp_path / "a", schedule="step", limits=Limits(epochs=3)).settings.schedule_steps == 24
    with pytest.raises(TrainingError, match="schedule: 'cosine' needs a length in steps or epochs; got neither"):
        start(tmp_path / "b", schedule="cosine", limits=Limits(minutes=1))


def test_the_average_is_that_of_the_weights_and_is_what_a_checkpoint_gives(tmp_path):
    trainer = start(tmp_path, ema=0.5)
    expected = None
    for t in range(5):
        trainer._one_step()
        new = {key: value.clone() for key, value in trainer.model.named_parameters()}
        keep = min(0.5, (1 + t) / (10 + t))
        expected = new if t == 0 else {key: expected[key] * keep + new[key] * (1 - keep) for key in new}
    for key, value in trainer.result.named_parameters():
        assert torch.allclose(value, expected[key], rtol=1e-5, atol=1e-7)
        assert not torch.equal(value, dict(trainer.model.named_parameters())[key])
    trainer.save()
    kept, _ = load_model(tmp_path)
    assert all(torch.equal(value, kept.state_dict()[key]) for key, value in trainer.result.state_dict().items())


def test_bfloat16_changes_the_features_and_not_the_weights(tmp_path):
    losses = {}
    for precision in ("float32", "bfloat16"):
        trainer = start(tmp_path / precision, precision=precision)
        seen = []
        trainer.model.layers[1].register_forward_hook(lambda module, inputs, y, seen=seen: seen.append(y.dtype))
        trainer._one_step()
        assert seen == [getattr(torch, precision)]
        assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in trainer.model.parameters())
        losses[precision] = trainer._recent[0]["train_nats"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)
    assert losses["bfloat16"] != losses["float32"]


def test_the_discriminator_may_have_a_learning_rate_of_its_own(tmp_path):
    trainer = start(tmp_path, "dcgan", {"hidden_channels": 4, "latent_dim": 2}, discriminator_learning_rate=1e-3)
    rates = {name: descent.optimizer.param_groups[0]["lr"] for name, descent in trainer.descents.items()}
    assert rates == {"generator": 2e-4, "discriminator": 1e-3}


def test_the_best_model_is_kept_beside_the_last(tmp_path):
    trainer = start(tmp_path, learning_rate=1e-2)
    trainer._evaluate()
    for _ in range(5):
        trainer._one_step()
    trainer._evaluate()
    best = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    with torch.no_grad():
        trainer.model.layers[0].weight.add_(1)
    trainer._evaluate()
    trainer.save()
    kept, content = load_model(tmp_path / "best.pt")
    assert all(torch.equal(value, best[key]) for key, value in kept.state_dict().items())
    assert content["progress"]["step"] == 5
    assert content["progress"]["nats"] == min(record["test_nats"] for record in trainer.history)
    assert not torch.equal(load_model(tmp_path)[0].layers[0].weight, best["layers.0.weight"])


def test_a_best_model_is_no_run_to_be_resumed(tmp_path):
    trainer = start(tmp_path)
    trainer._evaluate()
    (tmp_path / "best.pt").rename(tmp_path / "model.pt")
    with pytest.raises(TrainingError, match="not a run that can be resumed"):
        resume_run("pixelcnn", tmp_path, {}, {})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"schedule": "linear"}, "schedule: unknown 'linear'; expected one of: constant, cosine, step"),
        ({"precision": "float8"}, "precision: unknown 'float8'; expected one of: float32, bfloat16"),
        ({"ema": 1.0}, "ema: expected a number of at least 0 and below 1; got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay: expected a number of at least 0; got -1.0"),
        ({"micro_batches": 0}, "micro_batches: expected a number above 0; got 0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(tmp_path, settings, message):
    with pytest.raises(TrainingError, match=message):
        start(tmp_path, **settings)


def test_a_diverged_step_names_the_layer(tmp_path):
    trainer = start(tmp_path)
    with torch.no_grad():
        trainer.model.layers[1].weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"training diverged: the loss became nan at step 1, first in layers\.1;"):
        trainer.run(Limits(steps=2))
    assert "weights" in read_checkpoint(tmp_path)
