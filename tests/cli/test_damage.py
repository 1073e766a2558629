"""Damage, moved data and full disks: the command line says what is wrong instead of printing a figure or a picture."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer", reason="the command line needs the extra 'cli'")
Image = pytest.importorskip("PIL.Image", reason="the folder data set needs pillow")

from helpers.command_lines import SMALL, is_one_sentence  # noqa: E402

import genkernels  # noqa: E402
from genkernels.cli import main  # noqa: E402
from genkernels.train import Limits, load_model, start_run  # noqa: E402
from genkernels.train.errors import TrainingError  # noqa: E402
from genkernels.train.lock import FolderLock  # noqa: E402
from genkernels.train.metrics import Measure  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", "pixelcnn", "--out", str(folder), "--steps", "3", "--samples", "0", *SMALL]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A run of three steps on the digits, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def with_weight(run: Path, value: float) -> None:
    content = torch.load(run / "model.pt", weights_only=True)
    content["model"]["layers.0.weight"][0, 0, 0, 0] = value
    torch.save(content, run / "model.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_a_weight_that_is_not_finite_is_named(command, run, name, value):
    with_weight(run, value)
    code, out, err = command(name, run / "model.pt")
    assert (code, out) == (1, "") and is_one_sentence(err)
    assert "its weight 'layers.0.weight' is not finite" in err


def test_a_flipped_bit_is_found_by_its_checksum(command, run):
    path = run / "model.pt"
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
        assert record.compress_type == zipfile.ZIP_STORED
        content = archive.read(record)
    whole = bytearray(path.read_bytes())
    whole[whole.index(content) + len(content) // 2] ^= 0x40
    path.write_bytes(whole)
    code, _, err = command("evaluate", path)
    assert code == 1 and is_one_sentence(err)
    assert f"the checksum of its record {record.filename} is wrong" in err


def test_the_error_of_one_image_is_not_printed_as_a_number():
    assert str(Measure("nats", "nats per image", 12.5, float("nan"), 1)) == "12.500"
    assert "±" in str(Measure("nats", "nats per image", 12.5, 0.25, 2))


def test_images_of_another_size_and_other_levels_are_called_so(command, run):
    images = run.parent / "images"
    images.mkdir()
    for name in ("0.png", "1.png"):
        Image.new("L", (12, 10)).save(images / name)
    code, out, err = command("evaluate", run, "--data", f"folder:{images}")
    assert (code, err) == (0, "")
    assert "note: the model was trained on images of 8 x 8; these are 10 x 12" in out
    assert "note: the model knows 17 grey levels; these images have 256, and are rounded down" in out
    assert "note" not in command("evaluate", run)[1]


def test_a_run_s_folder_and_a_plain_string_name_its_checkpoint(command, run):
    code, out, _ = command("evaluate", run)
    assert code == 0 and "299" in out
    for path in (str(run), str(run / "model.pt"), run):
        assert load_model(path)[1]["progress"]["step"] == 3


def test_where_no_picture_can_be_written_nothing_is_drawn(command, run, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    monkeypatch.setattr("genkernels.models.PixelCNN.sample", lambda *_, **__: pytest.fail("it was drawn"))
    code, _, err = command("sample", run, "--out", "samples.png")
    assert code == 1 and is_one_sentence(err) and "samples.png: cannot be written" in err


def test_a_resumed_run_draws_as_many_images_as_were_asked_for(command):
    command("train", "pixelcnn", "--out", "run", "--steps", "1", "--samples", "0", *SMALL)
    code, _, _ = command("train", "pixelcnn", "--out", "run", "--steps", "2", "--resume")
    assert code == 0 and not Path("run/samples.png").exists()


@pytest.mark.parametrize("option", ["--clip", "--lr"])
def test_a_limit_of_zero_is_refused_as_the_help_says(command, capsys, option):
    code, _, err = command("train", "pixelcnn", "--out", "run", option, "0")
    assert code == 1 and "expected a number above 0; got 0" in err
    main(["train", "--help"])
    assert "above 0" in capsys.readouterr().out


def test_moved_data_are_given_anew_and_other_data_refused(command, tmp_path):
    for folder, shade in (("here", 3), ("other", 9)):
        for k in range(4):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("L", (8, 8), shade * k).save(tmp_path / folder / f"{k}.png")
    code, _, _ = command("train", "pixelcnn", "--data", "folder:here", "--out", "run", "--steps", "1", *SMALL)
    assert code == 0
    (tmp_path / "here").rename(tmp_path / "there")
    code, _, err = command("train", "pixelcnn", "--out", "run", "--resume", "--steps", "2")
    assert code == 1 and str(tmp_path / "here") in err
    code, _, err = command("train", "pixelcnn", "--out", "run", "--resume", "--steps", "2", "--data", "folder:other")
    assert code == 1 and "other images than those of folder:" in err
    code, _, err = command("train", "pixelcnn", "--out", "run", "--resume", "--steps", "2", "--data", "digits")
    assert code == 1 and "cannot go on with 'digits'" in err
    code, _, err = command("train", "pixelcnn", "--out", "run", "--resume", "--steps", "2", "--data", "folder:there")
    assert (code, err) == (0, "")


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    trainer, _ = start_run("pixelcnn", tmp_path, {"data": "digits"}, {"hidden_channels": 4, "num_layers": 1})
    with FolderLock(tmp_path), pytest.raises(TrainingError, match="another run is writing to this folder"):
        trainer.run(Limits(steps=1))
    assert trainer.run(Limits(steps=1))


def limited_to_15_kb() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing then fails with EFBIG, as it does with ENOSPC


def test_where_a_checkpoint_does_not_fit_on_the_disk_the_old_one_stays_whole(run):
    before = (run / "model.pt").read_bytes()
    assert len(before) > 15_000
    done = subprocess.run(
        [sys.executable, "-m", "genkernels", "train", "pixelcnn", "--out", str(run), "--resume", "--steps", "4"],
        capture_output=True, text=True, preexec_fn=limited_to_15_kb, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and is_one_sentence(done.stderr)
    assert f"{run / 'model.pt'}: File too large" in done.stderr
    assert (run / "model.pt").read_bytes() == before
    assert sorted(path.name for path in run.iterdir()) == ["curve.png", "history.jsonl", "model.pt"]


def test_sigterm_saves_and_ends_with_143(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "genkernels", "train", "pixelcnn", "--out", "run", "--epochs", "9999", *SMALL],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "parameters" in process.stdout.readline()
    while not (tmp_path / "run/model.pt").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "")
    (line,) = (line for line in out.splitlines() if line.startswith("stopped at step"))
    assert line.endswith("go on with: genkernels train pixelcnn --out run --resume"), "the command is whole"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "run", "--device", "meta"], "--device meta: expected cpu, cuda"),
        (["evaluate", "run", "--device", "mps"], "--device mps: expected cpu, cuda"),
        (["evaluate", "run", "--data", "."], "did you mean folder:. or mnist:.?"),
    ],
    ids=["meta", "mps", "path alone"],
)
def test_small_mistakes_are_one_short_sentence(command, run, arguments, said):
    code, _, err = command(*arguments)
    assert code != 0 and is_one_sentence(err) and said in err and len(err) < 250


def test_an_empty_batch_of_cifars_python_version_is_named(command, run, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(b"")
    code, _, err = command("evaluate", run, "--data", f"cifar10:{tmp_path}")
    assert code == 1 and "data_batch_1: not a batch of CIFAR-10's Python version" in err and is_one_sentence(err)


def test_version_is_printed_alone(command):
    assert command("--version") == (0, f"genkernels {genkernels.__version__}\n", "")
