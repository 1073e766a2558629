"""The command line: what it writes and prints, and one sentence for every mistake."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer", reason="the command line needs the extra 'cli'")
Image = pytest.importorskip("PIL.Image", reason="looking at pictures needs pillow")

from helpers.command_lines import SMALL, is_one_sentence  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import genkernels  # noqa: E402
from genkernels.backends import Backend  # noqa: E402
from genkernels.cli import main  # noqa: E402
from genkernels.cli.app import app  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a run of three steps on the digits."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "pixelcnn", "--out", str(folder), "--steps", "3", "--samples", "0", *SMALL]) == 0
    return folder / "model.pt"


# --- each command ---------------------------------------------------------------------------------------


def test_info_names_the_version_every_backend_and_why_one_is_missing(command):
    code, out, _ = command("info")
    assert code == 0
    assert genkernels.__version__ in out and torch.__version__ in out
    for backend in genkernels.available_backends().values():
        assert backend.name in out and backend.reason[:40] in out


def test_text_in_brackets_or_colons_is_printed_as_it_is(command, trained, monkeypatch):
    odd = "no wheel: (pip install genkernels[gpu]) in /opt/[bold]x[/] :warning: [0]"
    backends = {"triton": Backend("triton", False, odd), "cpu": Backend("cpu", True, odd)}
    built = {**genkernels.build_info(), "native": None, "native_error": odd}
    monkeypatch.setattr(genkernels, "available_backends", lambda: backends)
    monkeypatch.setattr(genkernels, "build_info", lambda: built)
    _, out, _ = command("info")
    assert out.count(odd) == 3
    _, out, _ = command("sample", trained, "-n", 1, "--out", "a[red]b[1]:smile:.png")
    assert "written to a[red]b[1]:smile:.png" in out


def test_info_works_through_typers_own_runner():
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0 and "reference" in result.output


@pytest.mark.parametrize("words", [[], ["train"], ["sample"], ["evaluate"], ["demo"], ["info"]])
def test_every_command_has_help(command, words):
    code, out, err = command(*words, "--help")
    assert code == 0 and "Usage" in out and err == ""


def test_train_writes_a_model_a_history_a_curve_and_samples(command):
    code, out, err = command(
        "train", "pixelcnn", "--data", "digits", "--out", "run", "--steps", 20, "--samples", 4, *SMALL
    )
    assert (code, err) == (0, "")
    assert sorted(file.name for file in Path("run").iterdir()) == [
        "curve.png", "history.jsonl", "model.pt", "samples.png",
    ]  # fmt: skip
    assert [json.loads(line)["step"] for line in Path("run/history.jsonl").read_text().splitlines()] == [
        10,
        20,
    ]
    with Image.open("run/samples.png") as picture:
        assert picture.width > 300
    assert "1,498 images of digits, 17 levels" in out and "nats per image" in out
    assert "training: 100%" in out  # lines, not a moving bar, where no terminal is


def test_train_without_a_folder_writes_below_runs(command):
    assert command("train", "pixelcnn", "--steps", "1", "--samples", "0", *SMALL)[0] == 0
    assert Path("runs/pixelcnn-digits/model.pt").is_file()


def test_train_resumes_to_the_same_weights_as_an_uninterrupted_run(command):
    train = ["train", "pixelcnn", "--samples", "0"]
    assert command(*train, "--out", "whole", "--steps", "5", "--seed", "7", *SMALL)[0] == 0
    assert command(*train, "--out", "parts", "--steps", "2", "--seed", "7", *SMALL)[0] == 0
    assert command(*train, "--out", "parts", "--steps", "5", "--resume")[0] == 0
    whole, parts = (torch.load(f"{name}/model.pt", weights_only=True)["model"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_train_says_when_a_resumed_run_has_nothing_left_to_do(command):
    assert command("train", "pixelcnn", "--out", "run", "--steps", "2", "--samples", "0", *SMALL)[0] == 0
    code, _, err = command("train", "pixelcnn", "--out", "run", "--resume")
    assert code == 1 and is_one_sentence(err) and "has reached its limit (step 2" in err


def test_train_takes_the_options_of_the_model(command):
    options = [
        "--levels",
        "4",
        "--residual",
        "--head-channels",
        "5",
        "--optimizer",
        "rmsprop",
        "--lr",
        "0.01",
    ]
    assert command("train", "pixelcnn", "--out", "run", "--steps", "1", "--samples", "1", *options, *SMALL)[0] == 0
    content = torch.load("run/model.pt", weights_only=True)
    assert content["config"]["levels"] == 4 and content["config"]["residual"] is True
    assert content["settings"]["optimizer"] == "rmsprop" and content["settings"]["learning_rate"] == 0.01


def test_a_model_of_a_mixture_is_trained_evaluated_sampled_and_completed(command):
    options = ["--distribution", "logistic_mixture", "--mixtures", "3"]
    assert command("train", "pixelcnn", "--out", "run", "--steps", "2", "--samples", "1", *options, *SMALL)[0] == 0
    config = torch.load("run/model.pt", weights_only=True)["config"]
    assert (config["distribution"], config["mixtures"]) == ("logistic_mixture", 3)
    code, out, _ = command("evaluate", "run")
    assert code == 0 and "bits per sub-pixel" in out
    for more in ([], ["--complete"], ["--temperature", "0.5"]):
        assert command("sample", "run", "-n", "2", *more)[0] == 0
        assert Path("samples.png").exists()


def test_train_reads_a_folder_of_colour_images_and_resizes_them(command):
    Path("images").mkdir()
    for i in range(12):
        Image.effect_noise((10 + i, 9), 60).convert("RGB").save(f"images/{i}.png")
    code, out, err = command(
        "train", "pixelcnn", "--data", "folder:images", "--size", "4x5", "--levels", "8",
        "--out", "run", "--steps", "2", "--samples", "2", *SMALL,
    )  # fmt: skip
    assert (code, err) == (0, ""), out
    content = torch.load("run/model.pt", weights_only=True)
    assert content["config"]["in_channels"] == 3 and content["config"]["image_size"] == [4, 5]
    assert command("evaluate", "run/model.pt")[0] == 0


def test_sample_draws_the_same_picture_from_the_same_seed(command, trained):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        code, out, err = command("sample", trained, "--out", f"{name}.png", "-n", 2, "--seed", seed)
        assert (code, err) == (0, "") and f"written to {name}.png" in out
    a, b, c = (Path(f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_sample_completes_real_images(command, trained):
    code, _, err = command("sample", trained, "--complete", "-n", 2, "--out", "done.png", "--temperature", 0.5)
    assert (code, err) == (0, "")
    with Image.open("done.png") as picture:
        assert picture.width > 2 * picture.height  # given, completed and real side by side


def test_evaluate_prints_nats_and_bits(command, trained):
    code, out, err = command("evaluate", trained, "--data", "digits")
    assert (code, err) == (0, "")
    assert "nats per image" in out and "bits per sub-pixel" in out and "299" in out


FAMILIES = {
    "vae": (["--latent-dim", "2"], ["latent_grid.png", "reconstructions.png", "samples.png"]),
    "autoencoder": (["--latent-dim", "4"], ["reconstructions.png"]),
    "dcgan": (["--latent-dim", "4"], ["samples.png"]),
    "classifier": (["--latent-dim", "4"], []),
}


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """The folder of a run of each family, and what the command printed."""
    top = tmp_path_factory.mktemp("families")
    for name, (options, _) in FAMILIES.items():
        words = ["train", name, "--out", str(top / name), "--steps", "3", "--samples", "4", "--hidden-channels", "4"]
        assert main([*words, "--batch-size", "100", *options]) == 0
    return top


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_and_leaves_its_pictures(families, name):
    pictures = [file.name for file in (families / name).iterdir() if file.suffix == ".png"]
    assert sorted(pictures) == sorted([*FAMILIES[name][1], "curve.png"])
    for file in pictures:
        with Image.open(families / name / file) as picture:
            assert picture.width > 300


@pytest.mark.parametrize(
    "words, code, said",
    [
        ("evaluate vae", 0, "nats per image (upper bound)"),
        ("evaluate vae --importance-samples 5", 0, "nats per image (upper bound from 5 samples)"),
        ("evaluate autoencoder", 0, "squared error per sub-pixel"),
        ("evaluate dcgan", 1, "a GAN gives images no likelihood"),
        ("evaluate autoencoder --importance-samples 5", 1, "importance_samples: an autoencoder takes none; got 5"),
        ("sample vae -n 3", 0, "written to samples.png"),
        ("sample dcgan -n 3", 0, "written to samples.png"),
        ("sample autoencoder", 1, "an autoencoder has no distribution of codes to draw images from"),
        ("evaluate classifier", 0, "share of classes found"),
        ("evaluate classifier --importance-samples 5", 1, "importance_samples: a classifier takes none; got 5"),
        ("sample classifier", 1, "a classifier draws no images; it judges those of others"),
        ("sample vae --complete", 1, "--complete: only autoregressive models complete images; not a VAE"),
        ("sample dcgan --temperature 0.5", 1, "temperature: a GAN takes none; got 0.5"),
    ],
)
def test_every_family_samples_and_evaluates_or_says_why_not(command, families, words, code, said):
    verb, name, *rest = words.split()
    got, out, err = command(verb, families / name / "model.pt", *rest)
    assert got == code, err
    assert said in (err if code else out)
    assert err == "" if code == 0 else is_one_sentence(err)


@pytest.mark.parametrize("name", ["vae", "dcgan"])
def test_a_classifier_judges_what_a_family_draws(command, families, name):
    judge = families / "classifier"
    code, out, err = command(
        "evaluate", families / name, "--classifier", judge, "--samples", 300, "--json", "judged.json"
    )
    assert (code, err) == (0, "")
    assert "images drawn" in out and "Inception score by the classifier" in out and "300" in out
    record = json.loads(Path("judged.json").read_text())
    assert record["classifier"] == str(judge / "model.pt")
    figures = record["figures"]
    assert list(figures) == ["inception_score", "real_inception_score", "frechet_distance"]
    assert [figure["images"] for figure in figures.values()] == [300, 299, 300]
    assert figures["frechet_distance"]["mean"] > 0 and 1 <= figures["inception_score"]["mean"] <= 10


@pytest.mark.parametrize(
    "words, code, said",
    [
        ("dcgan --classifier vae", 1, "classifier: expected a run of train classifier; got a VAE"),
        ("dcgan --classifier nowhere", 1, "there is no checkpoint"),
        ("dcgan --samples 100", 2, "--samples: only --classifier draws images"),
        ("dcgan --classifier classifier --samples 19", 2, "--samples"),
        ("vae --classifier classifier --importance-samples 2", 2, "exclude each other"),
        ("autoencoder --classifier classifier", 1, "an autoencoder has no distribution of codes to draw images from"),
        ("classifier --classifier classifier", 1, "a classifier draws no images"),
        ("points --classifier classifier", 1, "classifier: expected one of images 2 x 1 x 1; got one of 1 x 8 x 8"),
    ],
)
def test_what_a_classifier_cannot_judge_is_refused(command, families, words, code, said):
    if not (families / "points").exists():
        points = ["--out", str(families / "points"), "--data", "ring", "--steps", "1", "--hidden-channels", "4"]
        assert command("train", "gan", *points)[0] == 0
    name, option, *rest = words.split()
    place = families / rest[0] if option == "--classifier" else rest[0]
    got, _, err = command("evaluate", families / name, option, place, *rest[1:])
    assert got == code and said in err and is_one_sentence(err), err


def test_samples_of_a_gan_follow_from_the_seed(command, families):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert command("sample", families / "dcgan/model.pt", "--out", f"{name}.png", "--seed", seed)[0] == 0
    a, b, c = (Path(f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_demo_trains_draws_and_times_both_sides(command):
    code, out, err = command("demo", "--seconds", "1", "--out", "shown")
    assert (code, err) == (0, "")
    # best.pt is there if the second was enough for an evaluation
    assert sorted({file.name for file in Path("shown").iterdir()} - {"best.pt"}) == [
        "curve.png", "history.jsonl", "model.pt", "samples.png",
    ]  # fmt: skip
    assert "plain PyTorch" in out and "train step, 32 images" in out and "sampling, 16 images" in out
    assert out.count("x faster") + out.count("x slower") == 2
    code, _, err = command("demo", "--seconds", "1", "--out", "shown")
    assert code == 1 and is_one_sentence(err)
    assert "shown holds a run already: replace it with --overwrite, or name another with --out" in err


# --- mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, code, message",
    [
        ("trian", 2, "No such command 'trian'"),
        ("train", 2, "Missing argument"),
        ("train pixelcnn --epoch 3", 2, "No such option: --epoch"),
        ("train pixelcnn --steps three", 2, "Invalid value for '--steps'"),
        ("train pixelcnn --steps 0", 2, "--steps"),
        ("train pixelcnn --levels 300", 2, "--levels"),
        ("train pixelcnn --size 3y4", 2, "--size: expected 32 or 32x48"),
        ("train pixelcnn --resume --overwrite", 2, "--resume and --overwrite exclude each other"),
        ("train pixelcnn --device gpu", 2, "--device gpu"),
        ("train pixelsnail", 1, "unknown model 'pixelsnail'; expected one of: fvbn, pixelcnn"),
        ("train vae --likelihood poisson", 1, "likelihood: expected one of 'bernoulli', 'categorical', 'gaussian'"),
        ("train vae --beta -1", 2, "--beta"),
        ("train dcgan --num-layers 3", 1, "num_layers: this model has no such option"),
        ("evaluate nowhere.pt --importance-samples 0", 2, "--importance-samples"),
        ("train pixelcnn --distribution x", 1, "distribution: expected one of 'categorical', 'logistic_mixture'; got"),
        ("train pixelcnn --mixtures 0", 2, "--mixtures"),
        ("train pixelrnn --recurrence up", 1, "recurrence: expected 'row' or 'diagonal'; got 'up'"),
        (
            "train pixelcnn --data imagenet",
            1,
            "unknown data set 'imagenet'; expected one of: digits, mnist:PATH",
        ),
        ("train pixelcnn --data mnist:/no/such/place", 1, "mnist: there is no folder /no/such/place"),
        ("train pixelcnn --data cifar10", 1, "cifar10: expected a path, as in cifar10:PATH"),
        ("train pixelcnn --optimizer lion", 1, "optimizer: unknown 'lion'"),
        ("train pixelcnn --lr 0", 1, "learning_rate: expected a number above 0"),
        ("train pixelcnn --resume", 1, "there is no checkpoint runs/pixelcnn-digits/model.pt"),
        ("train pixelcnn --out /proc/nothing", 1, "/proc/nothing: "),
        ("sample nowhere.pt", 1, "there is no checkpoint nowhere.pt"),
        ("evaluate nowhere.pt", 1, "there is no checkpoint nowhere.pt"),
        ("sample nowhere.pt --temperature 0", 2, "--temperature: expected a number above 0; got 0"),
        ("sample nowhere.pt --out grid.txt", 1, "grid.txt: expected a name that ends in .png"),
        ("sample nowhere.pt --data digits", 2, "--data: only --complete takes images"),
        ("demo --seconds 0", 2, "--seconds"),
    ],
)
def test_a_mistake_is_one_sentence_and_no_traceback(command, line, code, message):
    got, _, err = command(*line.split())
    assert got == code
    assert is_one_sentence(err), err
    assert message in err


def test_a_run_is_overwritten_only_when_told_to(command, trained):
    folder = trained.parent
    before = trained.read_bytes()
    code, _, err = command("train", "pixelcnn", "--out", folder, "--steps", "1", *SMALL)
    assert code == 1 and is_one_sentence(err)
    assert "holds a run already: go on with --resume, or replace it with --overwrite" in err
    assert trained.read_bytes() == before


def test_images_of_another_kind_than_the_model_takes_are_refused(command, trained):
    Path("images").mkdir()
    for i in range(2):
        Image.new("RGB", (8, 8), (i, 2, 3)).save(f"images/{i}.png")
    for words in (["evaluate", trained], ["sample", trained, "--complete"]):
        code, _, err = command(*words, "--data", "folder:images")
        assert code == 1 and is_one_sentence(err)
        assert "the model takes 1 channels; folder has 3" in err


def test_images_of_another_size_than_a_vae_takes_are_refused(command, families):
    Path("images").mkdir()
    for i in range(2):
        Image.new("L", (8, 9), i).save(f"images/{i}.png")
    code, _, err = command("evaluate", families / "vae/model.pt", "--data", "folder:images")
    assert code == 1 and is_one_sentence(err)
    assert "the model takes images of 8 x 8; those of folder are 9 x 8" in err


def test_a_damaged_data_file_is_one_sentence(command):
    Path("mnist").mkdir()
    Path("mnist/train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b damaged")
    Path("mnist/train-labels-idx1-ubyte.gz").write_bytes(b"")
    code, _, err = command("train", "pixelcnn", "--data", "mnist:mnist")
    assert code == 1 and is_one_sentence(err) and "train-images-idx3-ubyte.gz: damaged gzip file" in err
