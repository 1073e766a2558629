"""Files that sample and evaluate write: arrays, folders of pictures, figures with what they are of."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("typer", reason="the command line needs the extra 'cli'")
Image = pytest.importorskip("PIL.Image", reason="looking at pictures needs pillow")

from helpers.command_lines import SMALL, is_one_sentence  # noqa: E402

import genkernels  # noqa: E402
from genkernels.cli import main  # noqa: E402
from genkernels.train.checkpoint import open_model  # noqa: E402
from genkernels.train.drawing import draw  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def train(folder: Path, *words: str) -> Path:
    assert main(["train", *words, "--out", str(folder), "--steps", "3", "--samples", "0"]) == 0
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return train(tmp_path_factory.mktemp("digits") / "run", "pixelcnn", *SMALL)


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    return train(tmp_path_factory.mktemp("binary") / "run", "pixelcnn", "--levels", "2", *SMALL)


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    return train(tmp_path_factory.mktemp("ring") / "run", "gan", "--data", "ring", "--hidden-channels", "4")


def drawn(folder: Path, n: int, seed: int) -> torch.Tensor:
    trained = open_model(folder)
    return draw(trained.objective, trained.model, n, seed)


def test_an_array_holds_the_images_that_the_seed_gives(command, digits):
    assert command("sample", digits, "-n", 5, "--seed", 3, "--out", "some.npy")[0] == 0
    array = np.load("some.npy")
    assert array.shape == (5, 8, 8, 1) and array.dtype == np.uint8
    assert torch.equal(torch.from_numpy(array).permute(0, 3, 1, 2), drawn(digits, 5, 3))


def test_an_array_of_points_is_of_their_two_coordinates(command, ring):
    assert command("sample", ring, "-n", 7, "--out", "points.npy")[0] == 0
    array = np.load("points.npy")
    assert array.shape == (7, 2) and array.dtype == np.float32
    assert torch.equal(torch.from_numpy(array), drawn(ring, 7, 0).flatten(1))


@pytest.mark.parametrize("out", ["some/", "there"])
def test_a_folder_holds_each_image_as_it_was_drawn(command, digits, out):
    Path("there").mkdir()
    code, printed, _ = command("sample", digits, "-n", 3, "--out", out)
    assert code == 0 and f"written to {out}" in printed
    files = sorted(Path(out).iterdir())
    assert [file.name for file in files] == ["0000.png", "0001.png", "0002.png"]
    pictures = np.stack([np.asarray(Image.open(file)) for file in files])
    assert np.array_equal(pictures, drawn(digits, 3, 0)[:, 0].numpy())


def test_completed_images_are_what_a_file_of_them_holds(command, digits):
    assert command("sample", digits, "--complete", "-n", 2, "--out", "done.npy")[0] == 0
    from genkernels.train.data.sources import open_dataset

    assert np.array_equal(np.load("done.npy")[:, :4, :, 0], open_dataset("digits").test[:2, 0, :4].numpy())


@pytest.mark.parametrize(
    "out, message",
    [
        ("grid.txt", "grid.txt: expected a name that ends in .png, .pdf, .svg, .jpg, .webp, .npy, or a folder with /"),
        ("full/", "full: expected a folder that is new or empty; it holds something"),
        ("no/such/", "no/such: there is no folder "),
        ("no/such.npy", "no/such.npy: there is no folder no"),
        ("file/", "file: there is no folder "),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_anything_is_drawn(command, out, message):
    Path("full").mkdir()
    Path("full/0000.png").touch()
    Path("file").touch()
    code, _, err = command("sample", "nowhere.pt", "--out", out)
    assert code == 1 and is_one_sentence(err) and message in err, err
    assert not Path("no").exists()


def test_points_are_not_written_as_single_pictures(command, ring):
    code, _, err = command("sample", ring, "--out", "points/")
    assert code == 1 and is_one_sentence(err) and "points: points are no pictures" in err
    assert not Path("points").exists()


def test_figures_are_written_with_what_they_are_of(command, digits, binary):
    code, printed, _ = command("evaluate", binary, "--json", "figures.json")
    assert code == 0 and "written to figures.json" in printed
    record = json.loads(Path("figures.json").read_text())
    figures = record["figures"]
    assert figures["nats"]["what"] == "nats per image" and figures["nats"]["standard_error"] > 0
    assert f"{figures['nats']['mean']:.3f} ± " in printed
    assert figures["bits_per_dim"]["mean"] == pytest.approx(figures["nats"]["mean"] / 64 / np.log(2))
    assert (record["data"], record["levels"], record["classifier"]) == ("digits", 2, None)
    assert record["binarisation"] == {"name": "threshold", "what": "binarised at half grey"}
    assert record["model"]["name"] == "pixelcnn" and record["model"]["config"]["hidden_channels"] == 4
    assert record["model"]["step"] == 3 and record["model"]["checkpoint"] == str(binary / "model.pt")
    assert record["settings"]["batch_size"] == 100
    assert record["genkernels"]["version"] == genkernels.__version__
    assert command("evaluate", digits, "--json", "figures.json")[0] == 0
    assert json.loads(Path("figures.json").read_text())["binarisation"] is None


def test_figures_go_to_a_file_that_can_be_written(command):
    for place, message in ((".", ".: is a folder"), ("no/f.json", "no/f.json: there is no folder no")):
        code, _, err = command("evaluate", "nowhere.pt", "--json", place)
        assert code == 1 and is_one_sentence(err) and message in err
