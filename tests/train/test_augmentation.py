"""What is random in training images: every image is a part of its source, and follows from the seed and its place."""

import pytest
import torch

from genkernels.train import Limits, resume_run, start_run
from genkernels.train.data.augmentation import Augmentation
from genkernels.train.data.batches import Batches, LabelledImages
from genkernels.train.data.sources import open_dataset, quantise, resized

CPU = torch.device("cpu")


def numbered(n: int, height: int, width: int) -> torch.Tensor:
    """Images whose pixels are all different."""
    return torch.arange(height * width, dtype=torch.uint8).view(1, 1, height, width).expand(n, 1, height, width)


def test_flips_turn_half_of_the_images():
    images = numbered(1000, 2, 6)
    got = Batches(LabelledImages(images), 1000, 0, augmentation=Augmentation(flip=True)).batch(0, 0, CPU).images
    turned = (got[:, 0, 0, 0] == 5).float().mean()
    assert 0.4 < turned < 0.6
    assert ((got == images) | (got == images.flip(3))).flatten(1).all()


def test_crops_come_from_every_place_equally_often():
    got = Augmentation(crop=3)(numbered(4000, 5, 6), torch.Generator().manual_seed(0))
    corners = got[:, 0, 0, 0].long()
    expected = numbered(1, 5, 6)[0, 0]
    places = torch.tensor([row * 6 + column for row in range(3) for column in range(4)])
    counts = corners.bincount(minlength=30)
    assert counts.sum() == counts[places].sum() and (counts[places] > 4000 / 12 * 0.75).all()
    for image, corner in zip(got[:50], corners[:50], strict=True):
        top, left = divmod(int(corner), 6)
        assert torch.equal(image[0], expected[top : top + 3, left : left + 3])


def test_a_crop_is_resized_as_greys_and_then_reduced_to_levels():
    images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    got = Augmentation(crop=8, size=(4, 4), levels=2)(images, torch.Generator().manual_seed(0))
    assert torch.equal(got, quantise(resized(images, (4, 4)), 2))


def test_crops_are_new_in_each_epoch_and_the_same_for_each_seed():
    def epoch(number: int, seed: int) -> torch.Tensor:
        batches = Batches(LabelledImages(numbered(64, 9, 9)), 64, seed, augmentation=Augmentation(crop=4))
        return batches.batch(number, 0, CPU).images

    assert torch.equal(epoch(0, 5), epoch(0, 5))
    assert not torch.equal(epoch(0, 5), epoch(1, 5)) and not torch.equal(epoch(0, 5), epoch(0, 6))


def test_a_run_with_crops_tests_on_middles_and_resumes_exactly(tmp_path):
    pytest.importorskip("sklearn", reason="the embedded digits need the extra 'cli'")
    settings = {"data": "digits", "batch_size": 200, "crop": 6}
    model = {"hidden_channels": 4, "num_layers": 0, "levels": 4}

    def start(name: str):
        return start_run("pixelcnn", tmp_path / name, settings, model)[0]

    whole = start("whole")
    assert whole.model.image_size == (6, 6)
    assert torch.equal(whole.test.images, quantise(open_dataset("digits").test[:, :, 1:7, 1:7], 4))
    assert whole.batches.batch(0, 0, CPU).images.shape == (200, 1, 6, 6)
    whole.run(Limits(steps=10))
    start("parts").run(Limits(steps=4))
    resumed, _ = resume_run("pixelcnn", tmp_path / "parts", {}, {})
    resumed.run(Limits(steps=10))
    assert all(torch.equal(resumed.model.state_dict()[k], v) for k, v in whole.model.state_dict().items())
