"""The commands compress and decompress: files there and back, and what they refuse."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer", reason="the command line needs the extra 'cli'")
pytest.importorskip("constriction", reason="the entropy coder needs the extra 'codec'")
Image = pytest.importorskip("PIL.Image", reason="image files need pillow")

from helpers.command_lines import SMALL, is_one_sentence  # noqa: E402

from genkernels.cli import main  # noqa: E402
from genkernels.train import open_dataset  # noqa: E402


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    top = tmp_path_factory.mktemp("runs")
    kinds = {
        "pixelcnn": ["pixelcnn", *SMALL], "full": ["pixelcnn", "--levels", "256", *SMALL],
        "classes": ["gated-pixelcnn", "--num-classes", "10", *SMALL], "vae": ["vae", "--hidden-channels", "4"],
    }  # fmt: skip
    for name, words in kinds.items():
        assert main(["train", *words, "--out", str(top / name), "--steps", "2", "--samples", "0"]) == 0
    return top


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def digits(n):
    return open_dataset("digits").test[:n].permute(0, 2, 3, 1).numpy()


def test_image_files_come_back(command, runs):
    names = []
    for k, pixels in enumerate(digits(5)):
        Image.fromarray(pixels[..., 0]).save(f"{k}.png")
        names.append(f"{k}.png")
    code, out, err = command("compress", runs / "full", *names, "--out", "five.gkc")
    assert (code, err) == (0, "") and "5 images in" in out and f"{Path('five.gkc').stat().st_size:,} bytes" in out
    assert command("decompress", runs / "full", "five.gkc", "--out", "back/")[0] == 0
    for k, pixels in enumerate(digits(5)):
        assert np.array_equal(np.asarray(Image.open(f"back/{k:04}.png")), pixels[..., 0])


@pytest.mark.parametrize("name", ["pixelcnn", "full"])
def test_an_array_comes_back(command, runs, name):
    np.save("in.npy", digits(7))
    assert command("compress", runs / name, "in.npy", "--out", "x.gkc")[0] == 0
    assert command("decompress", runs / name, "x.gkc", "--out", "out.npy")[0] == 0
    assert np.array_equal(np.load("out.npy"), digits(7))


def test_what_cannot_be_compressed_or_decompressed_is_refused(command, runs):
    np.save("in.npy", digits(2))
    np.save("greys.npy", digits(2) // 2)
    np.save("floats.npy", digits(2) / 255)
    Path("text.npy").write_text("no array")
    Image.new("L", (8, 8)).save("a.png")
    Image.new("L", (9, 8)).save("b.png")
    Image.new("RGB", (8, 8)).save("c.png")
    assert command("compress", runs / "pixelcnn", "in.npy", "--out", "x.gkc")[0] == 0
    Path("half.gkc").write_bytes(Path("x.gkc").read_bytes()[:-3])
    for words, code, said in (
        (("compress", runs / "pixelcnn", "greys.npy", "--out", "y"), 1, "none of the model's 17 levels"),
        (("compress", runs / "pixelcnn", "floats.npy", "--out", "y"), 1, "expected uint8 [n, H, W, 1]; got float64"),
        (("compress", runs / "pixelcnn", "text.npy", "--out", "y"), 1, "text.npy: no array of NumPy"),
        (("compress", runs / "pixelcnn", "nowhere.png", "--out", "y"), 1, "nowhere.png"),
        (
            ("compress", runs / "full", "a.png", "b.png", "--out", "y"),
            1,
            "b.png: expected 8 x 8 pixels as the",
        ),
        (("compress", runs / "full", "c.png", "--out", "y"), 1, "c.png: expected greys, as the model has them"),
        (("compress", runs / "full", "in.npy", "a.png", "--out", "y"), 1, "expected one .npy file, or image files"),
        (("compress", runs / "full", "in.npy", "--out", "no/y"), 1, "there is no folder no"),
        (("compress", runs / "vae", "in.npy", "--out", "y"), 1, "only autoregressive models compress; not a vae"),
        (("compress", runs / "classes", "in.npy", "--out", "y"), 1, "the model needs the class of each image"),
        (("decompress", runs / "full", "x.gkc", "--out", "z/"), 1, "x.gkc: they were compressed by a model with other"),
        (("decompress", runs / "pixelcnn", "half.gkc", "--out", "z/"), 1, "half.gkc: they end early"),
        (("decompress", runs / "pixelcnn", "in.npy", "--out", "z/"), 1, "in.npy: expected compressed images"),
        (("decompress", runs / "pixelcnn", "x.gkc", "--out", "z.png"), 2, "--out: expected FOLDER/ or NAME.npy"),
        (("decompress", runs / "pixelcnn", "nowhere", "--out", "z/"), 1, "nowhere: No such file"),
    ):
        got, _, err = command(*words)
        assert got == code and said in err and is_one_sentence(err), (words, err)
    assert not Path("y").exists() and not Path("z").exists()


def test_without_the_coder_the_command_says_what_to_install(command, runs, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    np.save("in.npy", digits(2))
    code, _, err = command("compress", runs / "pixelcnn", "in.npy", "--out", "y")
    assert code == 1 and "needs constriction, which is not installed: pip install 'genkernels[codec]'" in err
    assert not Path("y").exists()
