"""Lossless compression of digits: a minute of training, then PNG and the model beside each other.

python examples/lossless.py [SECONDS]
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from genkernels.coding import compress, decompress
from genkernels.models import bits_per_dim
from genkernels.train import Limits, evaluate, open_dataset, start_run


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    call()
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def png_bytes(images: torch.Tensor) -> int:
    total = 0
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(file, "png", optimize=True)
        total += file.tell()
    return total


def main(seconds: float) -> None:
    digits = open_dataset("digits")
    settings = {"data": "digits", "batch_size": 32, "learning_rate": 5e-4}
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = start_run("pixelcnn", Path(folder) / "run", settings, {})
        trainer.run(Limits(minutes=seconds / 60))
    model = trainer.model.eval()
    images = torch.cat([trainer.test.images[:], trainer.train.images[:701]])  # 1,000 of levels 0 .. 16
    pixels = images.numel()

    data, compressing = timed(lambda: compress(model, images))
    back, decompressing = timed(lambda: decompress(model, data))
    assert torch.equal(back, images)

    ideal = bits_per_dim(evaluate(model, images).nats, pixels // len(images))
    with torch.no_grad():
        _, forward = timed(lambda: model(images))
    png = 8 * png_bytes(torch.cat([digits.test, digits.train[:701]])) / pixels
    print(
        f"{len(images):,} images, bits per pixel: PNG {png:.3f}, model {ideal:.4f}, file {8 * len(data) / pixels:.4f}"
    )
    print(
        f"images a second: compressed {len(images) / compressing:,.0f}, decompressed {len(images) / decompressing:,.0f}"
    )
    print(f"by a forward pass for each pixel: {len(images) / (forward * pixels / len(images)):,.1f} decompressed")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
