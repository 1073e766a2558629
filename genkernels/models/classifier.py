"""Classifier: the class of an image, and features of it. It generates nothing; it judges what other families draw."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .autoregressive import check_levels, check_whole
from .conv_stacks import ConvolutionalModel, down


class Classifier(ConvolutionalModel):
    """Convolutions down to a code, as in :mod:`genkernels.models.conv_stacks`, ReLU, and a linear layer to the classes.

    Images are levels 0 .. levels - 1 in any real dtype, scaled to [0, 1] inside.

    Args:
        in_channels: colours of an image.
        hidden_channels: features of the layer next to the image; each layer further in has twice as many.
        latent_dim: numbers in a code: the features that the last layer sees.
        levels: values that a sub-pixel takes, 2 to 256.
        num_classes: at least 2.
        image_size: height and width, or one number for squares: sides that halving brings down to 4 .. 7.

    Shape: [N, in_channels, H, W] -> logits [N, num_classes].

    Raises:
        ValueError: an argument does not fit; the message names it.
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_channels: int = 32,
        latent_dim: int = 64,
        levels: int = 256,
        *,
        num_classes: int = 10,
        image_size: int | Sequence[int] = 28,
    ) -> None:
        super().__init__(in_channels, hidden_channels, latent_dim, image_size)
        check_whole("levels", levels, 2, 256)
        check_whole("num_classes", num_classes, 2)
        self.levels, self.num_classes = levels, num_classes
        self.config |= {"levels": levels, "num_classes": num_classes}
        self.encoder = nn.Sequential(
            *down(in_channels, hidden_channels, latent_dim, image_size), nn.Flatten(1), nn.ReLU()
        )
        self.head = nn.Linear(latent_dim, num_classes)

    def encode(self, x: Tensor) -> Tensor:
        """Codes of images: levels [N, in_channels, H, W] -> [N, latent_dim], none negative.

        Raises:
            ValueError: the shape does not fit, or a value is not a level (not looked for inside ``torch.compile``).
        """
        self.check_images(x)
        check_levels("x", x, self.levels)
        return self.encoder(x.to(self.head.weight.dtype) / (self.levels - 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x))
