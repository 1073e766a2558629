"""What is random in training images: places that are cut out, left and right, pixels of two levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .binarise import stochastic
from .sources import quantise, resized


@dataclass(frozen=True)
class Augmentation:
    """Drawn anew each time that an image is seen.

    Attributes:
        crop: side of a square that is cut out, at a random place; None for whole images.
        size: height and width to which that square is resized; None for its own.
        flip: turn each image left to right with probability 1/2.
        binarise: a pixel is 1 with its grey value as probability, else 0.
        levels: to which images with a crop are reduced.
    """

    crop: int | None = None
    size: tuple[int, int] | None = None
    flip: bool = False
    binarise: bool = False
    levels: int = 256

    @property
    def takes_greys(self) -> bool:
        """Whether images come as grey values 0 .. 255, not as levels; levels cannot be resized or drawn."""
        return self.crop is not None or self.binarise

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Levels uint8 [N, C, h, w] of images uint8 [N, C, H, W]; all that is random is the generator's."""
        if self.crop is not None:
            images = self._cut(images, self.crop, generator)
        if self.flip:
            turned = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(turned[:, None, None, None], images.flip(3), images)
        if self.binarise:
            return stochastic(images, generator)
        return images if self.crop is None else quantise(images, self.levels)

    def _cut(self, images: Tensor, side: int, generator: torch.Generator) -> Tensor:
        height, width = images.shape[2:]
        tops = torch.randint(0, height - side + 1, (len(images),), generator=generator).tolist()
        lefts = torch.randint(0, width - side + 1, (len(images),), generator=generator).tolist()
        squares = [
            image[:, top : top + side, left : left + side]
            for image, top, left in zip(images, tops, lefts, strict=True)
        ]  # fmt: skip
        return resized(torch.stack(squares), self.size or (side, side))
