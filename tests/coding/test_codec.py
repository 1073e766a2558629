"""Compression: an exact round trip, the size that the likelihood says, and data that are no compressed images."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.sampler_cases import CASES, random_images
from helpers.sampler_nets import Plain
from torch import nn

import genkernels
from genkernels.coding import CodingError, codec, compress, decompress
from genkernels.coding.container import unpack
from genkernels.models import VAE, PixelCNN
from genkernels.train import Limits, start_run

pytest.importorskip("constriction", reason="the entropy coder needs the extra 'codec'")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.classes is None and case.size[1] > 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_decompressed_is_what_was_compressed(name, dtype):
    """By the native executor, and by PyTorch's (float64)."""
    case = CASES[name]
    model = case.model(dtype)
    images = random_images(5, case.size, model.levels)
    data = compress(model, images)
    assert unpack(data)[0].native == (dtype == torch.float32)
    result = decompress(model, data)
    assert result.dtype == torch.uint8 and torch.equal(result, images)


def test_classes_and_maps_are_given_to_both_sides(monkeypatch):
    monkeypatch.setattr(codec, "MOST_IMAGES", 3)  # several groups, each with its own part of the condition
    case = CASES["gated colours classes"]
    model = case.model(torch.float32)
    images, labels = random_images(8, case.size, model.levels), torch.arange(8) % 3
    data = compress(model, images, labels)
    assert torch.equal(decompress(model, data, labels), images)
    with pytest.raises(CodingError, match="what comes out is not what was compressed"):
        decompress(model, data, (labels + 1) % 3)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_bytes(monkeypatch, threads):
    monkeypatch.setattr(codec, "MOST_IMAGES", 4)
    case = CASES["pixelcnn colours"]
    model = case.model(torch.float32)
    images = random_images(11, case.size, model.levels)
    before = torch.get_num_threads()
    expected = compress(model, images)
    try:
        torch.set_num_threads(threads)
        assert compress(model, images) == expected
        assert torch.equal(decompress(model, expected), images)
    finally:
        torch.set_num_threads(before)


def test_a_sampler_of_someone_elses_model_compresses():
    class Net(nn.Module):
        """Channels whose parameters depend on earlier pixels alone: they are drawn together."""

        def __init__(self):
            super().__init__()
            self.first, self.out = Plain("A", 3, 8, 3, padding=1), nn.Conv2d(8, 900, 1)

        def forward(self, x):
            return self.out(self.first(x)).unflatten(1, (300, 3))

    torch.manual_seed(0)
    fast = genkernels.fast_sampler(Net(), levels=300, in_channels=3)
    images = torch.randint(300, (4, 3, 5, 6))
    result = decompress(fast, compress(fast, images))
    assert result.dtype == torch.int16 and torch.equal(result.long(), images)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    pytest.importorskip("sklearn", reason="the embedded digits need the extra 'cli'")
    options = {"hidden_channels": 16, "num_layers": 2}
    trainer, _ = start_run(
        "pixelcnn", tmp_path_factory.mktemp("run"), {"data": "digits", "learning_rate": 3e-3}, options
    )
    trainer.run(Limits(steps=150))
    return trainer.model.eval(), trainer.train.images[:]


def test_the_size_is_the_models_nats_and_half_a_percent(trained):
    model, images = trained
    images = images[:1000]
    told = []
    data = compress(model, images, progress=lambda done, total: told.append((done, total)))
    assert told == [(512, 1000), (1000, 1000)]
    with torch.no_grad():
        ideal = -model.log_prob(images).double().sum().item() / np.log(2) / 8
    assert ideal < len(data) < 1.005 * ideal
    assert torch.equal(decompress(model, data), images)


def test_images_that_do_not_fit_are_refused():
    model = PixelCNN(1, 4, 1, 4)
    for images, message in (
        (torch.zeros(2, 3, 4, 4), r"images: expected levels \[n, 1, H, W\]; got shape \[2, 3, 4, 4\]"),
        (torch.zeros(0, 1, 4, 4), r"images: expected levels .* got shape \[0, 1, 4, 4\]"),
        (torch.zeros(1, 1, 1, 65536), r"images: expected \[n, C, H, W\] up to .*; got \[1, 1, 1, 65536\]"),
        (torch.full((1, 1, 2, 2), 4), r"images: expected levels 0 .. 3; got 4 .. 4"),
        (torch.full((1, 1, 2, 2), 0.5), r"images: expected whole levels 0 .. 3"),
    ):
        with pytest.raises(CodingError, match=message):
            compress(model, images)
    with pytest.raises(TypeError, match="images: expected a Tensor; got list"):
        compress(model, [[0]])
    with pytest.raises(CodingError, match="model: expected an AutoregressiveModel or a FastSampler; got VAE"):
        compress(VAE(image_size=8), torch.zeros(1, 1, 8, 8))


def test_a_model_without_probabilities_is_refused():
    def draw(parameters, uniforms):
        return (uniforms * 4).long()

    fast = genkernels.fast_sampler(Plain("A", 1, 2, 3, padding=1), levels=4, in_channels=1, distribution=draw)
    with pytest.raises(CodingError, match=r"model: expected one that predicts the probabilities .* is custom"):
        compress(fast, torch.zeros(1, 1, 3, 3, dtype=torch.long))


def test_words_that_no_encoder_writes_are_refused():
    case = CASES["pixelcnn"]
    model = case.model(torch.float32)
    data = compress(model, random_images(30, case.size, model.levels))
    causes = set()
    for k in range(47, len(data) - 12):
        with pytest.raises(CodingError, match="what comes out is not what was compressed") as caught:
            decompress(model, data[:k] + b"\xff" * 12 + data[k + 12 :])
        causes.add(type(caught.value.__cause__))
    assert causes == {type(None), AssertionError}  # by the checksum, and by the coder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_predicts_nan_is_refused_with_the_place(dtype):
    case = CASES["pixelcnn colours"]
    model = case.model(dtype)
    images = random_images(3, case.size, model.levels)
    with torch.no_grad():
        list(model.parameters())[-1].fill_(torch.nan)
    with pytest.raises(
        CodingError, match="model: what it predicts for channel 0 at row 0, column 0 is no distribution"
    ):
        compress(model, images)


def test_data_that_are_no_compressed_images_of_the_model_are_refused():
    case = CASES["pixelcnn"]
    model = case.model(torch.float32)
    images = random_images(3, case.size, model.levels)
    data = compress(model, images)
    for damaged, message in (
        (b"", "data: expected compressed images; got something else"),
        (b"PNG" + data[3:], "data: expected compressed images"),
        (data[:20], "data: they end within the header"),
        (data[:-1], "data: they end early"),
        (data[:45], "data: they end early"),
        *((data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "data: the header is damaged") for at in range(4, 43)),
        (data + b"x", "data: 1 bytes more than the images have"),
    ):
        with pytest.raises(CodingError, match=message):
            decompress(model, damaged)
    broken = bytearray(data)
    broken[-6] ^= 0x40
    with pytest.raises(CodingError, match="what comes out is not what was compressed: they are damaged"):
        decompress(model, bytes(broken))
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.raises(CodingError, match="compressed by a model with other weights"):
        decompress(model, data)


def test_the_example_runs():
    pytest.importorskip("sklearn", reason="the embedded digits need the extra 'cli'")
    example = Path(__file__).parents[2] / "examples" / "lossless.py"
    assert len(example.read_text().splitlines()) < 80
    done = subprocess.run([sys.executable, str(example), "1"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "images a second: compressed" in done.stdout
