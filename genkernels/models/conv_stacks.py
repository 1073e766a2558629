"""The two halves that VAEs, autoencoders and DCGANs are made of: an image down to a vector, a vector up to an image.

Both go in steps of two with 4x4 kernels, stride 2, padding 1, down to a base of 4 to 7 pixels, where one kernel of that
size stands between the base and the vector. Each halving doubles the features. For 64 x 64 images and 64 features:

    down: C -> 64 (32 x 32) -> 128 (16 x 16) -> 256 (8 x 8) -> 512 (4 x 4) -> vector
    up:   vector -> 512 (4 x 4) -> 256 (8 x 8) -> 128 (16 x 16) -> 64 (32 x 32) -> C

Source: Radford, Metz, Chintala 2016, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks", section 3 and figure 1; the kernel sizes are those of the usual PyTorch versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from ..nn import ConvBnAct2d, ConvTransposeBnAct2d
from .autoregressive import as_size, check_whole
from .base import GenerativeModel

SMALLEST_BASE, LARGEST_BASE = 4, 7
STEP = (4, 2, 1)  # kernel size, stride, padding: halves or doubles height and width exactly


class ConvolutionalModel(GenerativeModel):
    """Base class of the families that are made of these halves.

    Args:
        in_channels: colours of an image.
        hidden_channels: features of the layer next to the image; each layer further in has twice as many.
        latent_dim: numbers in the vector.
        image_size: height and width, or one number for squares; see :func:`halvings`.

    Raises:
        ValueError: an argument is not a whole number of at least 1, or no size; the message names it.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, latent_dim: int, image_size: int | Sequence[int]
    ) -> None:
        super().__init__()
        check_whole("in_channels", in_channels, 1)
        check_whole("hidden_channels", hidden_channels, 1)
        check_whole("latent_dim", latent_dim, 1)
        self.in_channels, self.latent_dim = in_channels, latent_dim
        self.image_size = as_size("image_size", image_size)
        self.config = {
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "latent_dim": latent_dim,
            "image_size": list(self.image_size),
        }


def halvings(image_size: int | Sequence[int]) -> tuple[int, tuple[int, int]]:
    """How often both sides can be halved with 4 pixels left, and what is left: 64 -> 4, (4, 4); 28 -> 2, (7, 7).

    Raises:
        ValueError: they cannot be halved, or more than 7 pixels are left on the shorter side.
    """
    height, width = as_size("image_size", image_size)
    count = 0
    while height % 2 == width % 2 == 0 and min(height, width) >= 2 * SMALLEST_BASE:
        height, width, count = height // 2, width // 2, count + 1
    if count == 0 or not SMALLEST_BASE <= min(height, width) <= LARGEST_BASE:
        raise ValueError(
            f"image_size: expected sides that halving brings down to {SMALLEST_BASE} .. {LARGEST_BASE}, such as 28, "
            f"32, 64 or 128; got {image_size!r}"
        )
    return count, (height, width)


def down(
    in_channels: int,
    hidden_channels: int,
    out_channels: int,
    image_size: int | Sequence[int],
    *,
    activation: str = "relu",
    negative_slope: float = 0.2,
    first_batch_norm: bool = True,
    batch_norm: bool = True,
    bias: bool | None = None,
) -> list[nn.Module]:
    """Layers from [N, in_channels, H, W] to [N, out_channels, 1, 1].

    Args:
        in_channels, hidden_channels, out_channels: of the image, of the first layer's features, of the vector.
        image_size: see :func:`halvings`.
        activation, negative_slope: of all layers but the last, which has neither activation nor batch normalisation.
        first_batch_norm, batch_norm: whether the first layer, and the others but the last, have batch normalisation.
        bias: None where there is no batch normalisation; False nowhere.
    """
    count, base = halvings(image_size)
    widths = [hidden_channels << level for level in range(count)]
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(zip([in_channels, *widths], widths, strict=False)):
        layers.append(
            ConvBnAct2d(
                inputs, outputs, *STEP, bias=bias,
                activation=activation, negative_slope=negative_slope,
                batch_norm=batch_norm and (index > 0 or first_batch_norm),
            )
        )  # fmt: skip
    layers.append(ConvBnAct2d(widths[-1], out_channels, base, bias=bias, activation=None, batch_norm=False))
    return layers


def up(
    in_channels: int,
    hidden_channels: int,
    out_channels: int,
    image_size: int | Sequence[int],
    *,
    last_activation: str | None = None,
    bias: bool | None = None,
) -> list[nn.Module]:
    """Layers from [N, in_channels, 1, 1] to [N, out_channels, H, W]: batch normalisation and ReLU, but in the last.

    Args:
        in_channels, hidden_channels, out_channels: of the vector, of the last features, of the image.
        image_size: see :func:`halvings`.
        last_activation: of the last layer, which has no batch normalisation.
        bias: None where there is no batch normalisation; False nowhere.
    """
    count, base = halvings(image_size)
    widths = [hidden_channels << level for level in reversed(range(count))]
    layers: list[nn.Module] = [ConvTransposeBnAct2d(in_channels, widths[0], base, bias=bias, activation="relu")]
    for inputs, outputs in pairwise(widths):
        layers.append(ConvTransposeBnAct2d(inputs, outputs, *STEP, bias=bias, activation="relu"))
    layers.append(
        ConvTransposeBnAct2d(widths[-1], out_channels, *STEP, bias=bias, activation=last_activation, batch_norm=False)
    )
    return layers
