"""Results of a trained model: its likelihood, its pictures, and its speed against plain PyTorch."""

import itertools
import math

import pytest
import torch
from helpers.fresh_process import run_fresh

from genkernels.models import PixelCNN
from genkernels.train import pictures
from genkernels.train.compare import compare_with_plain, largest_difference
from genkernels.train.errors import GenkernelsError
from genkernels.train.metrics import evaluate
from genkernels.train.pictures import check_picture_path, save_curve, save_grids, tile
from genkernels.train.plain_pixelcnn import PlainPixelCNN

Image = pytest.importorskip("PIL.Image", reason="looking at pictures needs pillow")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PixelCNN(1, 8, 2, 5, image_size=(4, 6))


@pytest.fixture
def images():
    return torch.randint(0, 5, (7, 1, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# --- likelihood -----------------------------------------------------------------------------------------


def test_an_evaluation_is_the_mean_over_all_images_whatever_the_batches(model, images):
    each = -model.log_prob(images).double()
    for batch_size in (1, 3, 100):
        result = evaluate(model, images, batch_size)
        assert result.images == 7
        assert result.nats == pytest.approx(each.mean().item(), rel=1e-6)
        assert result.standard_error == pytest.approx(each.std().item() / math.sqrt(7), rel=1e-4)
        assert result.bits_per_dim == pytest.approx(result.nats / 24 / math.log(2))


def test_an_evaluation_leaves_the_model_in_its_mode_and_reports_progress(model, images):
    calls = []
    model.train()
    evaluate(model, images, 3, lambda done, total: calls.append((done, total)))
    assert model.training and calls == [(3, 7), (6, 7), (7, 7)]
    assert math.isnan(evaluate(model, images[:1]).standard_error)


# --- pictures -------------------------------------------------------------------------------------------


def test_a_grid_holds_every_image_in_reading_order():
    images = torch.arange(5).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    sheet = tile(images, levels=5, columns=2)
    assert sheet.shape == (8, 5, 3) and sheet.dtype == torch.uint8
    assert sheet[::3, ::3, 0].tolist() == [
        [0, 64],
        [128, 191],
        [255, 128],
    ]  # levels 0 .. 4, and the empty place
    assert sheet[2].unique().tolist() == [128]


def test_points_lie_over_each_other_in_one_plot_that_holds_them_all(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="pictures need the extra 'cli'")
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
    near, far = torch.rand(50, 2, 1, 1), 4 * torch.ones(1, 2, 1, 1)
    for groups, reach in (({"real": near, "modes": near[:3]}, 3.0), ({"real": near, "samples": far}, 6.0)):
        save_grids(tmp_path / "points.png", groups, levels=256)
        (axes,) = figures.pop().axes
        assert axes.get_xlim() == axes.get_ylim() == (-reach, reach)
        drawn = {group.get_label(): torch.from_numpy(group.get_offsets().data) for group in axes.collections}
        assert drawn.keys() == groups.keys()
        assert all(torch.equal(drawn[title].float(), groups[title].flatten(1)) for title in groups)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_grids_are_written_in_grey_and_colour(tmp_path, channels):
    images = torch.randint(0, 5, (4, channels, 4, 6))
    save_grids(tmp_path / "grids.png", {"drawn": images, "real": images}, levels=5)
    with Image.open(tmp_path / "grids.png") as picture:
        assert picture.width > picture.height > 100
        assert len(picture.convert("L").getcolors()) > 4


@pytest.mark.parametrize("history", [[], [{"step": 10, "train_nats": 3.0}], [{"step": 10, "test_nats": 3.0}]])
def test_a_curve_is_drawn_from_any_history(tmp_path, history):
    save_curve(tmp_path / "curve.png", history, {"train_nats": "training", "test_nats": "test"}, "nats per image")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_a_picture_that_cannot_be_written_is_refused_beforehand(tmp_path):
    check_picture_path(tmp_path / "grid.PNG")
    with pytest.raises(GenkernelsError, match=r"grid.txt: expected a name that ends in .png"):
        check_picture_path(tmp_path / "grid.txt")
    with pytest.raises(GenkernelsError, match="there is no folder"):
        check_picture_path(tmp_path / "nowhere" / "grid.png")


def test_training_needs_no_optional_package_before_it_draws_or_reads_images(tmp_path):
    said = run_fresh(f"""
        import sys
        for package in ("typer", "rich", "matplotlib", "PIL", "sklearn"):
            sys.modules[package] = None
        from pathlib import Path
        from genkernels import train
        from genkernels.train.pictures import check_picture_path
        for work in (lambda: train.open_dataset("digits"), lambda: check_picture_path(Path("a.png"))):
            try:
                work()
            except train.GenkernelsError as error:
                print(error)
        Path({str(tmp_path)!r}, "a.png").touch()
        Path({str(tmp_path)!r}, "b.png").touch()
        try:
            train.open_dataset("folder:{tmp_path}")
        except train.GenkernelsError as error:
            print(error)
    """)
    assert [line.split(" which")[0] for line in said.splitlines()] == [
        "the data set 'digits' needs scikit-learn,",
        "drawing a picture needs matplotlib,",
        "the data set 'folder' needs pillow,",
    ]


# --- the plain twin -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"head_channels": 6}, {"kernel_size": 5, "first_kernel_size": 5}], ids=str)
def test_the_plain_twin_computes_the_same_outputs_and_gradients(images, options):
    torch.manual_seed(0)
    model = PixelCNN(1, 8, 2, 5, **options)
    plain = PlainPixelCNN(model)
    assert largest_difference(model, plain, images) < 1e-4
    assert plain.loss(images).item() == pytest.approx(-model.log_prob(images).mean().item() / 24, rel=1e-5)


def test_a_twin_with_other_weights_is_noticed_before_anything_is_timed(model, images, monkeypatch):
    monkeypatch.setattr(PlainPixelCNN, "forward", lambda self, x: self.net(x.float() / self.levels))
    with pytest.raises(RuntimeError, match="computes something else"):
        compare_with_plain(model, images)


def test_the_twins_draw_from_the_same_distribution():
    torch.manual_seed(0)
    model = PixelCNN(1, 8, 1, 2, image_size=(1, 2))
    samples = PlainPixelCNN(model).sample(20_000, 1, 2)
    for pair in itertools.product((0, 1), repeat=2):
        probability = model.log_prob(torch.tensor(pair).view(1, 1, 1, 2)).exp().item()
        share = (samples.flatten(1) == torch.tensor(pair)).all(1).double().mean().item()
        assert share == pytest.approx(probability, abs=5 * math.sqrt(probability / 20_000))


@pytest.mark.parametrize("options", [{"in_channels": 3}, {"residual": True}])
def test_a_model_that_has_no_twin_is_refused(options):
    with pytest.raises(ValueError, match="model: expected a grey PixelCNN without residual blocks"):
        PlainPixelCNN(PixelCNN(levels=2, **options))


def test_timing_leaves_the_weights_alone_and_reports_both_pieces_of_work(model, images):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = compare_with_plain(model, images, samples=2, rounds=3, budget=0.1)
    assert [row.what for row in rows] == ["train step, 7 images", "sampling, 2 images"]
    assert all(row.ours > 0 and row.plain > 0 and row.rounds == 3 for row in rows)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
