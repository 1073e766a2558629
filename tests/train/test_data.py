"""Data sets: real images in, and one clear sentence for everything that is missing or damaged."""

import gzip
import io
import os
import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from genkernels.train.data.idx import read_idx
from genkernels.train.data.sources import DEBIAN_FASHION_MNIST, dequantise, open_dataset, quantise
from genkernels.train.errors import DataError

Image = pytest.importorskip("PIL.Image", reason="the folder data set needs pillow")


# --- digits and levels ----------------------------------------------------------------------------------


def test_digits_are_1797_real_images_in_two_disjoint_parts():
    data = open_dataset("digits")
    assert data.train.shape == (1498, 1, 8, 8) and data.test.shape == (299, 1, 8, 8)
    assert data.train.dtype == torch.uint8 and data.train_labels.shape == (1498,)
    assert torch.equal(data.train, open_dataset("digits").train)  # the split is always the same
    assert data.test_labels.unique().tolist() == list(range(10))
    train = {tuple(image.flatten().tolist()) for image in data.train}
    assert not any(tuple(image.flatten().tolist()) in train for image in data.test)


def test_digits_have_17_levels_that_quantising_keeps():
    from sklearn.datasets import load_digits

    data = open_dataset("digits")
    original = torch.from_numpy(load_digits().images)[:, None].to(torch.uint8)
    assert data.levels == 17
    assert torch.equal(quantise(data.test, 17), original[5::6])
    assert torch.equal(dequantise(quantise(data.test, 17), 17), data.test)


@pytest.mark.parametrize("levels", [2, 3, 16, 17, 255, 256])
def test_quantising_uses_every_level_evenly_and_keeps_the_order(levels):
    quantised = quantise(torch.arange(256, dtype=torch.uint8), levels)
    assert quantised.dtype == torch.uint8
    counts = quantised.long().bincount()
    assert len(counts) == levels and counts.max() - counts.min() <= 1
    assert (quantised.int().diff() >= 0).all()
    assert dequantise(quantised, levels)[[0, -1]].tolist() == [0, 255]


def test_two_levels_are_a_threshold_above_127():
    assert quantise(torch.tensor([0, 127, 128, 255], dtype=torch.uint8), 2).tolist() == [0, 0, 1, 1]


# --- IDX ------------------------------------------------------------------------------------------------


def idx(*shape: int, kind: int = 8, data: bytes | None = None) -> bytes:
    data = bytes(i % 256 for i in range(torch.Size(shape).numel())) if data is None else data
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data


def write_mnist(folder: Path, *, compress: bool, separator: str = "-") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 5), ("t10k", 3)):
        for stem, content in (("images-idx3", idx(count, 4, 6)), ("labels-idx1", idx(count))):
            name = f"{split}-{stem}-ubyte".replace("s-idx", f"s{separator}idx")
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("inside", ["", "MNIST/raw"])
def test_mnist_files_are_found_gzipped_or_not_under_their_usual_names(tmp_path, compress, separator, inside):
    write_mnist(tmp_path / inside, compress=compress, separator=separator)
    data = open_dataset(f"mnist:{tmp_path}")
    assert data.train.shape == (5, 1, 4, 6) and data.test.shape == (3, 1, 4, 6)
    assert data.train.flatten().tolist() == list(range(120))
    assert data.test_labels.tolist() == [0, 1, 2]


def damaged_gzip(cut: int, flip: int | None = None) -> bytes:
    content = bytearray(gzip.compress(idx(5, 4, 6)))
    if flip is not None:
        content[flip] ^= 0xFF
    return bytes(content[: len(content) - cut])


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not an IDX file"),
        (b"\x89PNG and more", "not an IDX file"),
        (idx(5, 4, 6, kind=13), "expected unsigned bytes .IDX type 8.; got IDX type 13"),
        (idx(120), "expected 3 dimensions; got 1"),
        (idx(5, 4, 6)[:9], "cut off inside its header"),
        (idx(5, 4, 6)[:-1], "expected 120 bytes of data, as its header says .5 x 4 x 6.; got 119"),
        (idx(5, 4, 6) + b"\0", "expected 120 bytes .* got 121"),
        (idx(2**32 - 1, 2**32 - 1, 2**32 - 1, data=b""), "expected .* bytes .* got 0"),
        (idx(0, 4, 6), "is empty"),
        (damaged_gzip(cut=10), "damaged gzip file"),
        (damaged_gzip(cut=4, flip=None), "damaged gzip file"),
        (damaged_gzip(cut=0, flip=30), "damaged gzip file"),
        (damaged_gzip(cut=0, flip=-6), "damaged gzip file"),
    ],
)
def test_a_damaged_idx_file_is_named_with_its_damage(tmp_path, content, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_idx(path, 3)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_as_many_labels_as_images_are_required(tmp_path):
    write_mnist(tmp_path, compress=False)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(4))
    with pytest.raises(DataError, match=r"holds 3 images, but .* 4 labels"):
        open_dataset(f"mnist:{tmp_path}")


def test_a_missing_mnist_file_is_named(tmp_path):
    write_mnist(tmp_path, compress=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="mnist: there is no t10k-labels-idx1-ubyte"):
        open_dataset(f"mnist:{tmp_path}")


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_is_found_where_debian_puts_it():
    data = open_dataset("fashion-mnist")
    assert data.train.shape == (60000, 1, 28, 28) and data.test.shape == (10000, 1, 28, 28)
    assert data.train_labels.bincount().tolist() == [6000] * 10


# --- CIFAR-10 -------------------------------------------------------------------------------------------


def write_cifar(folder: Path, per_file: int = 2) -> None:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        record = bytes([number]) + bytes(1024 * [10]) + bytes(1024 * [20]) + bytes(1024 * [30])
        (folder / f"{name}.bin").write_bytes(record * per_file)


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_cifar10_is_read_from_its_binary_version(tmp_path, inside):
    write_cifar(tmp_path / inside)
    data = open_dataset(f"cifar10:{tmp_path}")
    assert data.train.shape == (10, 3, 32, 32) and data.test.shape == (2, 3, 32, 32)
    assert data.train[0, :, 5, 5].tolist() == [10, 20, 30]
    assert data.train_labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and data.test_labels.tolist() == [
        5,
        5,
    ]


def test_a_missing_or_damaged_cifar10_file_is_named(tmp_path):
    write_cifar(tmp_path)
    file = tmp_path / "data_batch_3.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"data_batch_3.bin: expected whole records of 3073 bytes; got 6145"):
        open_dataset(f"cifar10:{tmp_path}")
    file.write_bytes(b"\xff" + content[1:])
    with pytest.raises(DataError, match=r"expected labels 0 .. 9; got 255"):
        open_dataset(f"cifar10:{tmp_path}")
    file.unlink()
    with pytest.raises(DataError, match=r"no data_batch_3.bin in "):
        open_dataset(f"cifar10:{tmp_path}")


def write_pickled_cifar(folder: Path, change=lambda batch: batch) -> None:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.full((2, 3072), number, dtype=np.uint8)
        batch = {b"batch_label": b"", b"labels": [number, 9], b"data": data, b"filenames": [b"a", b"b"]}
        (folder / name).write_bytes(pickle.dumps(change(batch), protocol=2))


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_cifar10_is_read_from_its_python_version(tmp_path, inside):
    write_pickled_cifar(tmp_path / inside)
    data = open_dataset(f"cifar10:{tmp_path}")
    assert data.train.shape == (10, 3, 32, 32) and data.test.shape == (2, 3, 32, 32)
    assert data.train[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and (data.test == 5).all()
    assert data.test_labels.tolist() == [5, 9]


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, and the names of NumPy as they were then: as the files in use are."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def test_cifar10_is_read_from_pickles_of_python_2(tmp_path):
    write_pickled_cifar(tmp_path)
    for file in tmp_path.iterdir():
        batch = pickle.loads(file.read_bytes())
        buffer = io.BytesIO()
        Python2Pickler(buffer, protocol=2).dump(batch)
        file.write_bytes(buffer.getvalue().replace(b"numpy._core.", b"numpy.core."))
        assert b"numpy.core.multiarray" in file.read_bytes() and b"_codecs" not in file.read_bytes()
    data = open_dataset(f"cifar10:{tmp_path}")
    assert data.train[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and data.test_labels.tolist() == [5, 9]


@pytest.mark.parametrize("name", [b"numpy.testing\n_frombuffer", b"numpy\nencode", b"_codecs\nlookup", b"os\nsystem"])
def test_only_the_names_of_an_array_may_stand_in_a_pickle(tmp_path, name):
    write_pickled_cifar(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(b"\x80\x02c" + name + b"\n.")
    expected = name.decode().replace("\n", r"\.")
    with pytest.raises(DataError, match=rf"data_batch_2: not a batch .*it asks for {expected}"):
        open_dataset(f"cifar10:{tmp_path}")


def test_a_pickle_that_asks_for_anything_else_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    write_pickled_cifar(tmp_path, lambda batch: {**batch, b"more": Payload()})
    with pytest.raises(DataError, match=r"data_batch_1: not a batch of CIFAR-10's Python version \(it asks for posix"):
        open_dataset(f"cifar10:{tmp_path}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda batch: {}, "b'data'"),
        (lambda batch: [], "list indices"),
        (lambda batch: {**batch, b"labels": [1]}, "1 labels for"),
        (lambda batch: {**batch, b"labels": [1, 10]}, r"expected labels 0 \.\. 9; got 10"),
        (lambda batch: {**batch, b"data": batch[b"data"][:, :7]}, "shape"),
    ],
)
def test_a_damaged_batch_of_the_python_version_is_named(tmp_path, change, message):
    write_pickled_cifar(tmp_path, change)
    with pytest.raises(DataError, match=message) as error:
        open_dataset(f"cifar10:{tmp_path}")
    assert str(tmp_path / "data_batch_1") in str(error.value)


# --- a folder of images ---------------------------------------------------------------------------------


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 4), colour=(10, 20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour if mode == "RGB" else 77).save(path)


def test_a_folder_keeps_its_own_split_its_classes_and_its_colours(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            for i in range(count):
                picture(tmp_path / split / name / f"{i}.png")
    data = open_dataset(f"folder:{tmp_path}")
    assert data.train.shape == (6, 3, 4, 6) and data.test.shape == (2, 3, 4, 6)
    assert data.train[0, :, 0, 0].tolist() == [10, 20, 30]
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and data.test_labels.tolist() == [0, 1]


def test_a_folder_without_a_split_gives_every_tenth_image_to_the_test(tmp_path):
    for i in range(25):
        picture(tmp_path / f"{i:02}.png", "L")
    data = open_dataset(f"folder:{tmp_path}")
    assert data.train.shape == (23, 1, 4, 6) and data.test.shape == (2, 1, 4, 6)
    assert data.train_labels is None and data.train.unique().tolist() == [77]


def test_one_image_in_colour_makes_all_three_channels_deep(tmp_path):
    picture(tmp_path / "a.png", "L")
    picture(tmp_path / "b.jpg", "RGB")
    assert open_dataset(f"folder:{tmp_path}").train.shape == (1, 3, 4, 6)


def test_images_of_several_sizes_need_a_size(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", size=(8, 8))
    with pytest.raises(DataError, match=r"the images differ in size: .*a.png is 4 x 6, .*b.png 8 x 8"):
        open_dataset(f"folder:{tmp_path}")
    assert open_dataset(f"folder:{tmp_path}", size=(5, 3)).test.shape == (1, 3, 5, 3)


def test_a_folder_with_nothing_to_use_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        open_dataset(f"folder:{tmp_path}")
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected at least 2 images"):
        open_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_unreadable_image_is_named(tmp_path, suffix):
    picture(tmp_path / "a.png")
    damaged = tmp_path / f"b.{suffix}"
    damaged.write_bytes(b"no picture at all")
    with pytest.raises(DataError, match=rf"b.{suffix}: cannot be read as an image"):
        open_dataset(f"folder:{tmp_path}")
    Image.effect_noise((6, 4), 50).convert("RGB").save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with pytest.raises(DataError, match=rf"b.{suffix}: damaged image"):
        open_dataset(f"folder:{tmp_path}")


# --- specifications -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec, message",
    [
        ("imagenet", "unknown data set 'imagenet'; expected one of: digits, mnist:PATH, fashion-mnist"),
        ("", "unknown data set ''"),
        ("MNIST", "unknown data set 'MNIST'"),
        ("mnist", "mnist: expected a path, as in mnist:PATH"),
        ("folder:", "folder: expected a path"),
        ("cifar10:/no/such/place", "cifar10: there is no folder /no/such/place"),
        ("digits:here", "digits: takes no path"),
    ],
)
def test_a_specification_that_means_nothing_is_refused(spec, message):
    with pytest.raises(DataError, match=message):
        open_dataset(spec)


def test_images_of_every_data_set_are_cut_resized_and_made_grey(tmp_path):
    write_cifar(tmp_path)
    spec = f"cifar10:{tmp_path}"
    assert open_dataset(spec, crop=20).test.shape == (2, 3, 20, 20)
    assert open_dataset(spec, (16, 24)).test.shape == (2, 3, 16, 24)
    assert open_dataset(spec, (8, 8), crop=20, grey=True).test.shape == (2, 1, 8, 8)
    assert open_dataset(spec, (8, 8), crop=20, grey=True).train.shape == (10, 1, 32, 32)  # cut in training
    assert (open_dataset(spec, grey=True).train == round(0.299 * 10 + 0.587 * 20 + 0.114 * 30)).all()
    digits = open_dataset("digits")
    assert torch.equal(open_dataset("digits", crop=4).test, digits.test[:, :, 2:6, 2:6])
    assert torch.equal(open_dataset("digits", (8, 8), grey=True).train, digits.train)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"spec": "digits", "crop": 9}, r"crop: expected a side of 1 \.\. 8, of 8 x 8; got 9"),
        ({"spec": "digits", "fixed": True}, "binarize: 'fixed' is a version of mnist:PATH; got 'digits'"),
        ({"spec": "ring", "crop": 1}, "crop: ring holds points, not images; got 1"),
        ({"spec": "ring", "size": (2, 2)}, "size: ring holds points"),
        ({"spec": "grid:x"}, "grid: takes no path; got 'x'"),
    ],
)
def test_an_option_that_does_not_fit_the_data_is_named(options, message):
    with pytest.raises(DataError, match=message):
        open_dataset(**options)
