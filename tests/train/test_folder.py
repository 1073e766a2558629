"""Images from a folder are read as a viewer shows them, and belong to the class whose folder they lie in."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genkernels.train.data.sources import open_dataset
from genkernels.train.errors import DataError

Image = pytest.importorskip("PIL.Image", reason="the folder data set needs pillow")

RAMP = np.linspace(0, 1, 1024).reshape(32, 32)
EXPECTED = torch.from_numpy(np.rint(RAMP * 255)).to(torch.int)


def saved(folder: Path, image, name: str, **options) -> Path:
    """The image twice: a data set needs one to train and one to test on."""
    for index in range(2):
        path = folder / f"{index}{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
    return folder


def read(folder: Path, **options) -> torch.Tensor:
    return open_dataset(f"folder:{folder}", **options).train[0].int()


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (Image.fromarray((RAMP * 255).round().astype(np.uint8)), ".png"),
        (Image.fromarray((RAMP * 65535).round().astype(np.uint16)), ".png"),
        (Image.fromarray((RAMP * 65535).round().astype(np.uint16)), ".tif"),
        (Image.fromarray((RAMP * 65535).round().astype(np.int32)), ".tif"),
        (Image.fromarray(RAMP.astype(np.float32)), ".tif"),
    ],
    ids=["8 bits", "16 bits, PNG", "16 bits, TIFF", "32 bits", "real"],
)
def test_a_ramp_of_greys_stays_a_ramp(tmp_path, image, name):
    pixels = read(saved(tmp_path, image, name))
    assert pixels.shape == (1, 32, 32)
    assert (pixels[0] - EXPECTED).abs().max() <= 1


@pytest.mark.parametrize("values", [RAMP * 3, RAMP - 1, RAMP * np.nan], ids=["above 1", "below 0", "NaN"])
def test_real_numbers_that_are_no_greys_are_refused(tmp_path, values):
    saved(tmp_path, Image.fromarray(values.astype(np.float32)), ".tif")
    with pytest.raises(DataError, match="expected greys from 0 to 1; got"):
        read(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_orientation_says(tmp_path, orientation):
    shown = np.zeros((16, 24), np.uint8)
    shown[:8, :8] = 255  # bright at the top left
    undo = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose}
    undo |= {6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}
    image = Image.fromarray(np.ascontiguousarray(undo.get(orientation, np.array)(shown)))
    exif = image.getexif()
    exif[0x0112] = orientation
    pixels = read(saved(tmp_path, image, ".png", exif=exif))
    assert pixels[0].equal(torch.from_numpy(shown).int())


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path):
    image = Image.new("L", (24, 16), 9)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    at = content.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(content[at : at + 4], "big")
    moved = content[:at] + content[end:-12] + content[at:end] + content[-12:]  # the last chunk is IEND
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(moved)
    assert read(tmp_path).shape == (1, 24, 16)


def with_palette() -> "Image.Image":
    image = Image.new("P", (8, 8), 0)
    image.putpalette([200, 30, 30, 10, 20, 30] + [0] * 762)
    image.paste(1, (4, 0, 8, 8))
    return image


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.new("RGBA", (8, 8), (10, 20, 30, 255)), {}),
        (Image.new("LA", (8, 8), (20, 255)), {}),
        (with_palette(), {"transparency": 0}),
    ],
    ids=["RGBA", "LA", "palette"],
)
def test_what_is_transparent_lies_on_white(tmp_path, image, options):
    if not options:
        clear = (200, 30, 30, 0) if image.mode == "RGBA" else (200, 0)
        image.paste(clear, (0, 0, 4, 8))
    pixels = read(saved(tmp_path, image, ".png", **options))
    assert (pixels[:, :, :4] == 255).all()
    assert pixels[:, 0, 6].tolist() == ([20] if image.mode == "LA" else [10, 20, 30])


@pytest.mark.parametrize("mode", ["1", "RGB", "CMYK", "YCbCr"])
def test_other_modes_keep_their_colours(tmp_path, mode):
    name = ".png" if mode in ("1", "RGB") else ".tif"
    pixels = read(saved(tmp_path, Image.new("RGB", (8, 8), "white").convert(mode), name))
    assert (pixels >= 254).all()
    assert len(pixels) == (1 if mode == "1" else 3)


def classes(folder: Path, names, side: int = 8) -> None:
    for shade, name in enumerate(names):
        saved(folder / name, Image.new("RGB", (side, side), (shade, shade, shade)), ".png")


def test_hidden_files_and_folders_are_left_out(tmp_path):
    classes(tmp_path, ["cat", "dog"])
    classes(tmp_path, [".thumbs", ".ipynb_checkpoints", "__MACOSX"], side=4)
    (tmp_path / "cat/._0.png").write_bytes(b"\0\5\x16\7" + b"\0" * 80)
    data = open_dataset(f"folder:{tmp_path}")
    assert sorted([*data.train_labels.tolist(), *data.test_labels.tolist()]) == [0, 0, 1, 1]


def test_class_folders_may_be_links_and_links_may_lead_back(tmp_path):
    classes(tmp_path / "elsewhere", ["cat", "dog"])
    (tmp_path / "data").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere/cat/loop").symlink_to(tmp_path / "elsewhere/cat")
    data = open_dataset(f"folder:{tmp_path / 'data'}")
    assert len(data.train) + len(data.test) == 4
    assert data.train_labels.unique().tolist() == [0, 1]


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_a_folder_of_test_images_is_known_by_its_usual_names(tmp_path, name):
    classes(tmp_path / "train", ["cat", "dog"])
    classes(tmp_path / name, ["dog"])
    data = open_dataset(f"folder:{tmp_path}")
    assert data.train_labels.tolist() == [0, 0, 1, 1]
    assert data.test_labels.tolist() == [1, 1]


def test_a_class_that_has_test_images_alone_is_an_error(tmp_path):
    classes(tmp_path / "train", ["cat"])
    classes(tmp_path / "test", ["cat", "yak", "zebu"])
    with pytest.raises(DataError, match=r"no training image has the class of these folders: yak, zebu"):
        open_dataset(f"folder:{tmp_path}")


def test_all_broken_files_are_reported_and_can_be_skipped(tmp_path):
    classes(tmp_path, ["a", "b", "c"])
    (tmp_path / "a/0.png").write_bytes(b"no image")
    whole = (tmp_path / "b/1.png").read_bytes()
    (tmp_path / "b/1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"2 of 6 files cannot be read \(--skip-broken\): .*a/0\.png.*b/1\.png"):
        open_dataset(f"folder:{tmp_path}")
    data = open_dataset(f"folder:{tmp_path}", skip_broken=True)
    assert len(data.train) + len(data.test) == 4


def test_the_first_test_images_are_of_all_classes(tmp_path):
    for part, count in (("train", 1), ("test", 20)):
        for k in range(3):
            for index in range(count):
                path = tmp_path / part / str(k) / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (4, 4), 50 * k).save(path)
    data = open_dataset(f"folder:{tmp_path}")
    assert data.test_labels[:15].unique().tolist() == [0, 1, 2]
    assert data.test[:, 0, 0, 0].equal((50 * data.test_labels).to(torch.uint8))
    assert data.test.equal(open_dataset(f"folder:{tmp_path}").test)
