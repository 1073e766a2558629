"""Binarised images: each way is what it says, and every figure tells which one it is for."""

import json

import pytest
import torch

from genkernels.train import Limits, resume_run, start_run
from genkernels.train.data.augmentation import Augmentation
from genkernels.train.data.batches import Batches, LabelledImages
from genkernels.train.data.binarise import stochastic
from genkernels.train.data.sources import open_dataset, quantise
from genkernels.train.errors import DataError, TrainingError

pytest.importorskip("sklearn", reason="the embedded digits need the extra 'cli'")

SMALL = {"hidden_channels": 4, "num_layers": 0, "levels": 2}
CPU = torch.device("cpu")


def start(folder, **settings):
    return start_run("pixelcnn", folder, {"data": "digits", "batch_size": 200, **settings}, SMALL)[0]


def test_a_pixel_is_one_with_its_grey_value_as_probability():
    images = torch.tensor([0, 51, 128, 254, 255], dtype=torch.uint8).expand(100_000, 5)
    drawn = stochastic(images, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.uint8 and set(drawn.unique().tolist()) == {0, 1}
    means = drawn.float().mean(0).tolist()
    assert means[0] == 0 and means[4] == 1
    assert means[1:4] == pytest.approx([0.2, 128 / 255, 254 / 255], abs=0.006)


def test_stochastic_images_are_new_in_each_epoch_and_the_same_in_each_run(tmp_path):
    trainer, twin = (start(tmp_path / name, binarize="stochastic") for name in "ab")
    grey = open_dataset("digits").train
    first, again, next_epoch = (t.batches.batch(epoch, 0, CPU) for t, epoch in ((trainer, 0), (twin, 0), (trainer, 1)))
    assert torch.equal(first.images, again.images) and first.images.max() == 1
    order = trainer.batches.indices(0, 0)
    sure = (grey[order] == 0) | (grey[order] == 255)
    assert torch.equal(first.images[sure], (grey[order][sure] // 255))
    assert not torch.equal(first.images[~sure], quantise(grey[order], 2)[~sure])
    again_drawn = Batches(LabelledImages(grey), 1498, 0, augmentation=Augmentation(binarise=True))
    epochs = [again_drawn.batch(epoch, 0, CPU).images[again_drawn.indices(epoch, 0).argsort()] for epoch in (0, 1)]
    assert (epochs[0] != epochs[1]).float().mean() > 0.05
    assert len(next_epoch) == 200


def test_the_test_images_are_drawn_once_for_all_runs(tmp_path):
    runs = [start(tmp_path / str(seed), binarize="stochastic", seed=seed) for seed in (0, 1)]
    assert torch.equal(runs[0].test.images, runs[1].test.images)
    assert not torch.equal(runs[0].test.images, quantise(open_dataset("digits").test, 2))


def test_a_resumed_run_sees_the_same_draws(tmp_path):
    whole = start(tmp_path / "whole", binarize="stochastic", flip=True)
    whole.run(Limits(steps=10))
    start(tmp_path / "parts", binarize="stochastic", flip=True).run(Limits(steps=4))
    resumed, _ = resume_run("pixelcnn", tmp_path / "parts", {}, {})
    resumed.run(Limits(steps=10))
    assert all(torch.equal(resumed.model.state_dict()[k], v) for k, v in whole.model.state_dict().items())


def write_fixed(folder, broken=""):
    for part, count in (("train", 3), ("valid", 2), ("test", 2)):
        rows = torch.randint(0, 2, (count, 784), generator=torch.Generator().manual_seed(count))
        text = "\n".join(" ".join(map(str, row)) for row in rows.tolist()) + "\n"
        (folder / f"binarized_mnist_{part}.amat").write_text(broken if broken and part == "valid" else text)


def test_the_fixed_set_is_read_from_its_files(tmp_path):
    write_fixed(tmp_path)
    data = open_dataset(f"mnist:{tmp_path}", fixed=True)
    assert data.train.shape == (5, 1, 28, 28) and data.test.shape == (2, 1, 28, 28)
    expected = torch.randint(0, 2, (3, 784), generator=torch.Generator().manual_seed(3))
    assert torch.equal(quantise(data.train[:3], 2).flatten(1).long(), expected)
    trainer = start(tmp_path / "run", data=f"mnist:{tmp_path}", binarize="fixed")
    trainer.run(Limits(steps=1))


@pytest.mark.parametrize("content", ["0 1 2\n", "0 1\n", " "])
def test_a_damaged_or_missing_file_of_the_fixed_set_is_named(tmp_path, content):
    with pytest.raises(
        DataError, match=r"binarize: there is no binarized_mnist_train\.amat in .*, which 'fixed' needs"
    ):
        open_dataset(f"mnist:{tmp_path}", fixed=True)
    write_fixed(tmp_path, content)
    with pytest.raises(DataError, match=r"binarized_mnist_valid\.amat: expected rows of 784 numbers 0 or 1"):
        open_dataset(f"mnist:{tmp_path}", fixed=True)


def test_binarisation_is_for_models_of_two_levels(tmp_path):
    with pytest.raises(TrainingError, match="binarize: expected a model of 2 levels; got 'stochastic' and 17 levels"):
        start_run("pixelcnn", tmp_path, {"data": "digits", "binarize": "stochastic"}, {"hidden_channels": 4})
    with pytest.raises(
        TrainingError, match="binarize: unknown 'dither'; expected one of: threshold, stochastic, fixed"
    ):
        start(tmp_path, binarize="dither")


@pytest.mark.parametrize(
    "method, words", [(None, "binarised at half grey"), ("stochastic", "stochastically binarised")]
)
def test_every_figure_says_which_images_it_is_for(tmp_path, command, method, words):
    folder = tmp_path / "run"
    option = [] if method is None else ["--binarize", method]
    code, out, _ = command(
        "train", "pixelcnn", "--levels", 2, "--hidden-channels", 4, "--num-layers", 0, "--steps", 100, "--out", folder,
        "--samples", 0, *option,
    )  # fmt: skip
    assert code == 0 and f"over 299 images ({words})" in out
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert {record["binarize"] for record in records} == {method or "threshold"}
    assert f"2 levels ({words})" in out and f"training ({words}): 100%" in out
    _, out, _ = command("evaluate", folder)
    assert f"digits ({words})" in out and "note" not in out


def test_another_kind_of_test_images_is_measured_when_asked_for_and_noted(tmp_path, command):
    for levels in (2, 4):
        words = ["--levels", levels, "--hidden-channels", 4, "--num-layers", 0, "--steps", 1, "--samples", 0]
        assert command("train", "pixelcnn", "--out", tmp_path / str(levels), *words)[0] == 0
    _, own, _ = command("evaluate", tmp_path / "2")
    code, out, _ = command("evaluate", tmp_path / "2", "--binarize", "stochastic", "--json", "figures.json")
    assert code == 0 and own not in out
    assert (
        "note: the model was trained on images binarised at half grey; these are stochastically binarised" in out
    ) and "digits (stochastically binarised)" in out
    assert json.loads((tmp_path / "figures.json").read_text())["binarisation"]["name"] == "stochastic"
    for folder, method, message in (
        ("2", "dither", "binarize: unknown 'dither'; expected one of: threshold"),
        ("2", "fixed", "binarize: 'fixed' is a version of mnist:PATH"),
        ("4", "stochastic", "binarize: expected a model of 2 levels; got 'stochastic' and 4 levels"),
    ):
        code, _, err = command("evaluate", tmp_path / folder, "--binarize", method)
        assert code == 1 and message in err
