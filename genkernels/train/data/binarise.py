"""Binarised images, in the ways that likelihoods are reported for, which do not compare with each other.

threshold    a pixel is 1 above half grey
stochastic   a pixel is 1 with its grey value as probability: anew in each epoch, the test images once for all
             (Salakhutdinov & Murray 2008, "On the Quantitative Analysis of Deep Belief Networks")
fixed        the files of one such draw, which most papers use: binarized_mnist_{train,valid,test}.amat
             (Larochelle & Murray 2011, "The Neural Autoregressive Distribution Estimator")
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

METHODS = {
    "threshold": "binarised at half grey",
    "stochastic": "stochastically binarised",
    "fixed": "of the fixed binarised set",
}
TEST_SEED = 0


def stochastic(images: Tensor, generator: torch.Generator) -> Tensor:
    """Levels 0 and 1 of uint8 images 0 .. 255, a pixel being 1 with probability value / 255. Any shape."""
    return (torch.rand(images.shape, generator=generator) * 255 < images).to(torch.uint8)


def read_fixed(folder: Path) -> tuple[Tensor, Tensor]:
    """(train, test) of the fixed binarised set, uint8 [N, 1, 28, 28] of 0 and 255; train holds the validation images.

    Raises:
        DataError: a file is missing or damaged.
    """
    train, valid, test = (_read_amat(folder / f"binarized_mnist_{part}.amat") for part in ("train", "valid", "test"))
    return torch.cat([train, valid]), test


def _read_amat(path: Path) -> Tensor:
    if not path.is_file():
        raise DataError(f"binarize: there is no {path.name} in {path.parent}, which 'fixed' needs")
    digits = np.frombuffer(path.read_bytes().translate(None, b" \r\n"), dtype=np.uint8) - ord("0")
    if digits.size == 0 or digits.size % 784 or digits.max() > 1:
        raise DataError(f"{path}: expected rows of 784 numbers 0 or 1")
    return torch.from_numpy(digits * np.uint8(255)).view(-1, 1, 28, 28)
