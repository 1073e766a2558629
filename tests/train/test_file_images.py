"""Images too large for memory: decoded when they are used, and the run is the same to the bit."""

import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from genkernels.train import Limits, resume_run, start_run
from genkernels.train.data import file_images, folder
from genkernels.train.data.file_images import FileImages
from genkernels.train.data.sources import open_dataset
from genkernels.train.errors import DataError, TrainingError

Image = pytest.importorskip("PIL.Image", reason="the folder data set needs pillow")

CODES = {"latent_dim": 2, "hidden_channels": 4}


@pytest.fixture
def images(tmp_path) -> Path:
    """40 pictures of noise in two classes."""
    place = tmp_path / "images"
    for index in range(40):
        file = place / f"class{index % 2}" / f"{index:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((8, 8), 60 + index).convert("RGB").save(file)
    return place


@pytest.fixture
def too_large(monkeypatch):
    monkeypatch.setattr(file_images, "LARGEST_IN_MEMORY", 100)


def weights_after(run: Path, images: Path, steps: int, workers: int = 0) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Of a run, begun or gone on with; and PyTorch's random numbers after it."""
    settings = {"data": f"folder:{images}", "batch_size": 8, "flip": True, "crop": 7, "size": (8, 8)}
    trainer, _ = (resume_run if run.exists() else start_run)("vae", run, settings, CODES)
    trainer.batches.workers = workers
    trainer.run(Limits(steps=steps))
    assert not multiprocessing.active_children()
    return trainer.model.state_dict(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("options", [{}, {"size": (5, 6)}, {"crop": 4}, {"crop": 6, "size": (3, 3), "grey": True}])
def test_images_in_files_are_those_that_memory_would_hold(images, monkeypatch, options):
    held = open_dataset(f"folder:{images}", **options)
    monkeypatch.setattr(file_images, "LARGEST_IN_MEMORY", 100)
    left = open_dataset(f"folder:{images}", **options)
    assert isinstance(left.train, FileImages) and isinstance(left.test, FileImages)
    assert left.train.shape == tuple(held.train.shape)
    chosen = torch.tensor([7, 0, 7])
    assert torch.equal(left.train[chosen], held.train[chosen]) and torch.equal(left.train[3], held.train[3])
    assert torch.equal(left.train[:], held.train) and torch.equal(left.test[1:3], held.test[1:3])
    assert torch.equal(left.train.first(5)[-2:], held.train[3:5]) and len(left.train.first(5)) == 5
    assert torch.equal(left.train_labels, held.train_labels) and torch.equal(left.test_labels, held.test_labels)


def test_nothing_is_decoded_before_it_is_used(images, too_large, monkeypatch):
    decoded = []

    def read_pixels(file, *rest):
        decoded.append(file)
        return torch.zeros(3, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(folder, "read_pixels", read_pixels)
    monkeypatch.setattr(file_images, "read_pixels", read_pixels)
    data = open_dataset(f"folder:{images}")
    assert data.train.shape == (36, 3, 8, 8) and data.train.fingerprint and not decoded
    data.train[2:4]
    assert len(decoded) == 2


def test_training_is_the_same_to_the_bit_with_any_number_of_workers(images, tmp_path, monkeypatch):
    held = weights_after(tmp_path / "held", images, 7)
    monkeypatch.setattr(file_images, "LARGEST_IN_MEMORY", 100)
    for workers in (0, 2):
        weights, random_state = weights_after(tmp_path / f"left{workers}", images, 7, workers)
        assert all(torch.equal(weights[name], held[0][name]) for name in held[0])
        assert random_state == held[1]


def test_a_resumed_run_goes_on_exactly(images, tmp_path, too_large):
    whole, _ = weights_after(tmp_path / "whole", images, 12, workers=2)
    weights_after(tmp_path / "parts", images, 7, workers=2)
    parts, _ = weights_after(tmp_path / "parts", images, 12, workers=1)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_other_files_are_noticed_and_moved_ones_are_the_same(images, tmp_path, too_large):
    weights_after(tmp_path / "run", images, 1)
    moved = shutil.copytree(images, tmp_path / "moved")
    weights_after(tmp_path / "run", moved, 2)
    Image.new("RGB", (8, 8)).save(moved / "class0" / "00.png")
    with pytest.raises(TrainingError, match=r"data: the run in .* has other images"):
        weights_after(tmp_path / "run", moved, 3)


def damage(images: Path) -> Path:
    file = images / "class1" / "05.png"
    file.write_bytes(file.read_bytes()[:-40])
    return file


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_named_in_one_sentence_when_its_turn_comes(images, tmp_path, too_large, workers):
    file = damage(images)
    assert len(open_dataset(f"folder:{images}").train) == 36  # its header is whole
    with pytest.raises(DataError, match=r"05\.png: damaged image") as error:
        weights_after(tmp_path / "run", images, 7, workers)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert not multiprocessing.active_children()


def test_a_worker_that_ends_is_one_sentence_too(images, too_large, monkeypatch):
    source = open_dataset(f"folder:{images}").train
    monkeypatch.setattr(file_images, "read_pixels", lambda *rest: os._exit(3))  # in a worker, which is a fork
    batches = file_images.decoded_ahead(source, itertools.repeat(torch.arange(2)), 1)
    with pytest.raises(DataError, match=r"workers: a process that decodes images has ended \(.*\); try --workers 0"):
        next(batches)


def test_damaged_files_are_left_out_when_that_is_asked_for(images, too_large):
    damage(images)
    (images / "class0" / "00.png").write_bytes(b"no image")
    data = open_dataset(f"folder:{images}", skip_broken=True)
    assert len(data.train) + len(data.test) == 38 and data.train[:].shape == (len(data.train), 3, 8, 8)
    with pytest.raises(DataError, match=r"00\.png: cannot be read as an image.*\(--skip-broken leaves it out\)"):
        open_dataset(f"folder:{images}")


def test_a_crop_larger_than_the_images_is_refused_at_once(images, too_large):
    with pytest.raises(DataError, match=r"crop: expected a side of 1 \.\. 8, of 8 x 8; got 9"):
        open_dataset(f"folder:{images}", crop=9)


def test_what_needs_all_test_images_at_once_is_refused(images, tmp_path, too_large):
    with pytest.raises(TrainingError, match="binarize: 'stochastic' draws all test images at once"):
        start_run("pixelcnn", tmp_path / "run", {"data": f"folder:{images}", "binarize": "stochastic"}, {"levels": 2})


def test_the_command_trains_evaluates_and_completes(images, command, too_large):
    words = ["--data", f"folder:{images}", "--levels", 4, "--hidden-channels", 6, "--num-layers", 0, "--samples", 2]
    code, out, err = command("train", "pixelcnn", *words, "--steps", 3, "--workers", 1, "--out", "run")
    assert (code, err) == (0, ""), err
    assert "36 images of folder" in out
    assert command("evaluate", "run")[0] == 0
    assert command("sample", "run", "--complete", "-n", 2, "--out", "done.png")[0] == 0


def test_workers_are_refused_where_there_is_nothing_to_decode(command):
    code, _, err = command("train", "pixelcnn", "--data", "digits", "--workers", 2)
    assert code == 1 and "workers: the images of digits are in memory; nothing is left to decode" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_to_all_processes_ends_training_after_the_step_in_hand(images, tmp_path, number):
    (tmp_path / "sitecustomize.py").write_text(
        "from genkernels.train.data import file_images\nfile_images.LARGEST_IN_MEMORY = 100\n"
    )
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    words = ["vae", "--data", f"folder:{images}", "--out", "run", "--epochs", "1000000", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "genkernels", "train", *words, "--hidden-channels", "4", "--latent-dim", "2"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "model.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    assert "go on with: genkernels train vae" in out
    assert torch.load(tmp_path / "run" / "model.pt", weights_only=True)["progress"]["step"] > 0
