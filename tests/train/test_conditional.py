"""Training on labels: a gated PixelCNN with classes learns, is measured, resumed and sampled with them."""

import pytest
import torch

from genkernels.cli import main
from genkernels.train import Limits, load_model, resume_run, start_run
from genkernels.train.errors import GenkernelsError, TrainingError
from genkernels.train.metrics import evaluate
from genkernels.train.objectives import Drawing
from genkernels.train.recipes import find_recipe

pytest.importorskip("sklearn", reason="the embedded digits need the extra 'cli'")

SMALL = {"hidden_channels": 4, "num_layers": 1, "head_channels": 4, "levels": 2}
WORDS = ["--hidden-channels", "4", "--num-layers", "1", "--head-channels", "4", "--levels", "2"]


def start(folder, **options):
    return start_run("gated-pixelcnn", folder, {"data": "digits", "batch_size": 200}, SMALL | options)[0]


def test_every_image_is_trained_with_its_own_label(tmp_path, monkeypatch):
    trainer = start(tmp_path, num_classes=10)
    seen = []
    check = trainer.model.check_condition

    def watched(condition, batch):
        seen.append(condition)
        check(condition, batch)

    monkeypatch.setattr(trainer.model, "check_condition", watched)
    indices = trainer.batches.indices(0, 0)
    trainer._one_step()
    (labels,) = seen
    assert torch.equal(labels, trainer.train.labels[indices])
    assert torch.equal(trainer.batches.batch(0, 0, torch.device("cpu")).images, trainer.train.images[indices])
    seen.clear()
    trainer._evaluate()
    assert torch.equal(torch.cat(seen), trainer.test.labels)


def test_a_resumed_run_goes_on_with_the_labels(tmp_path):
    whole = start(tmp_path / "whole", num_classes=10)
    whole.run(Limits(steps=3))
    start(tmp_path / "parts", num_classes=10).run(Limits(steps=1))
    resumed, _ = resume_run("gated-pixelcnn", tmp_path / "parts", {}, {})
    resumed.run(Limits(steps=3))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_without_classes_no_label_is_used(tmp_path):
    trainer = start(tmp_path)
    assert trainer.train.labels is None and trainer.test.labels is None
    trainer.run(Limits(steps=1))


def test_figures_are_those_of_the_labels(tmp_path):
    trainer = start(tmp_path, num_classes=10)
    images, labels = trainer.test.images[:70], trainer.test.labels[:70]
    found = evaluate(trainer.model, images, 32, labels=labels)
    with torch.no_grad():
        assert found.nats == pytest.approx(-trainer.model.log_prob(images, labels).mean().item(), rel=1e-5)


def test_classes_are_drawn_in_turn_or_one_alone(tmp_path):
    trainer = start(tmp_path, num_classes=10)
    objective, model = trainer.objective, trainer.model

    def draw(model, **keywords):
        return objective.sample(model, 3, Drawing(torch.Generator().manual_seed(0), **keywords))

    uniforms = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for keywords, classes in (({}, [0, 1, 2]), ({"label": 7}, [7, 7, 7])):
        expected = model.sample(3, uniforms=uniforms, condition=torch.tensor(classes))
        assert torch.equal(draw(model, **keywords), expected * 255)
    with pytest.raises(GenkernelsError, match=r"label: expected one of the model's classes 0 \.\. 9; got 10"):
        draw(model, label=10)
    plain = find_recipe("gated-pixelcnn").build(**SMALL, image_size=8)
    with pytest.raises(GenkernelsError, match="label: a model without classes takes none; got 1"):
        draw(plain, label=1)


def test_labels_that_the_data_lack_or_the_model_has_no_class_for_are_named(tmp_path):
    with pytest.raises(TrainingError, match="num_classes: expected at least 10, the classes of digits; got 4"):
        start(tmp_path, num_classes=4)
    image = pytest.importorskip("PIL.Image", reason="the folder data set needs pillow")
    for i in range(3):
        image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")
    with pytest.raises(TrainingError, match="num_classes: folder has no labels"):
        start_run("gated-pixelcnn", tmp_path / "run", {"data": f"folder:{tmp_path}"}, SMALL | {"num_classes": 2})
    with pytest.raises(GenkernelsError, match="num_classes: this model has no such option"):
        start_run("autoencoder", tmp_path / "run", {"data": "digits"}, {"num_classes": 10})


def test_the_command_line_trains_measures_draws_and_completes_with_classes(tmp_path, capsys, monkeypatch):
    pytest.importorskip("typer", reason="the command line needs the extra 'cli'")
    pytest.importorskip("matplotlib", reason="pictures need the extra 'cli'")
    monkeypatch.chdir(tmp_path)
    line = ["train", "gated-pixelcnn", "--num-classes", "10", "--steps", "2", "--out", "run", "--samples", "2", *WORDS]
    assert main(line) == 0
    assert load_model(tmp_path / "run/model.pt")[0].num_classes == 10
    assert main(["evaluate", "run/model.pt"]) == 0
    assert "nats per image" in capsys.readouterr().out
    for words in ([], ["--label", "3"], ["--complete"]):
        assert main(["sample", "run/model.pt", "-n", "2", *words]) == 0, words
    assert main(["sample", "run/model.pt", "--label", "10"]) == 1
    assert "label: expected one of the model's classes 0 .. 9; got 10" in capsys.readouterr().err
    assert main(["sample", "run/model.pt", "--label", "1", "--complete"]) == 2
    assert "--label: images to complete have classes of their own" in capsys.readouterr().err
