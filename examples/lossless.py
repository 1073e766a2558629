"""Lossless compression of digits: a minute of training, then PNG and the model beside each other.

python examples/lossless.py [SECONDS]
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

from genkernels.coding import compress, decompress
from genkernels.train import Limits, open_dataset, start_run


def main(seconds: float) -> None:
    digits = open_dataset("digits")
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = start_run(
            "pixelcnn", Path(folder) / "run", {"data": "digits", "batch_size": 32, "learning_rate": 5e-4}, {}
        )
        trainer.run(Limits(minutes=seconds / 60))
    model = trainer.model.eval()
    images = trainer.test.images[:]  # levels 0 .. 16, uint8 [n, 1, 8, 8]

    data = compress(model, images)
    assert torch.equal(decompress(model, data), images)

    with torch.no_grad():
        nats = -model.log_prob(images).sum().item()
    png = 0
    for image in digits.test:
        file = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(file, "png", optimize=True)
        png += file.tell()
    for name, size in (("PNG, file by file", png), ("model's nats", nats / 8 / torch.log(torch.tensor(2.0)).item())):
        print(f"{name:20} {size:10,.0f} bytes")
    print(f"{'compressed':20} {len(data):10,} bytes, of {len(images)} images; decompressed: the same")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
