"""One of every layer and of every model with an input: for what all of them promise."""

import torch
from torch import nn

from genkernels import models
from genkernels import nn as layers

# (layer, input) of a small and of a large call; the large ones are for the kernels of this library.
SIZES = {"small": (8, 2, 6, 7), "large": (64, 16, 16, 16)}  # channels, batch, height, width


def _image(channels, batch, height, width):
    return torch.randn(batch, channels, height, width)


class _BothStacks(nn.Module):
    """A gated layer of one input and one result."""

    def __init__(self, channels, mask_type, condition):
        super().__init__()
        self.layer = layers.GatedMaskedConv2d(
            channels, channels, 3, mask_type=mask_type, channel_groups=2, condition_channels=condition
        )

    def forward(self, x):
        condition = None if self.layer.condition is None else x[:, :3, 0, 0]
        return torch.cat(self.layer(x, x.cos(), condition), 1)


LAYERS = {
    "masked": lambda c: layers.MaskedConv2d(c, c, 3, mask_type="A", channel_groups=2, activation="relu"),
    "gated A": lambda c: _BothStacks(c, "A", None),
    "gated B with a condition": lambda c: _BothStacks(c, "B", 3),
    "row": lambda c: layers.RowLSTM(c, c // 2, channel_groups=2, learned_state=True),
    "diagonal": lambda c: layers.DiagonalBiLSTM(c, c // 2, learned_state=True),
    "down": lambda c: layers.ConvBnAct2d(c, c, 4, 2, 1, activation="leaky_relu"),
    "down without norm": lambda c: layers.ConvBnAct2d(c, c, 4, 2, 1, batch_norm=False),
    "instance norm": lambda c: layers.InstanceNormAct2d(c, affine=True, activation="tanh"),
    "up": lambda c: layers.ConvTransposeBnAct2d(c, c, 4, 2, 1, bias=True, activation="relu"),
    "up without norm": lambda c: layers.ConvTransposeBnAct2d(c, c, 4, 2, 1, batch_norm=False, activation="tanh"),
}


def layer_and_input(name, size="small"):
    """The layer and [N, C, H, W]."""
    torch.manual_seed(0)
    return LAYERS[name](SIZES[size][0]), _image(*SIZES[size])


def _levels(shape, levels):
    return torch.randint(0, levels, shape).float()


# The part that maps one tensor to one, and its input.
MODELS = {
    "pixelcnn": (lambda: models.PixelCNN(3, 6, 2, 4, image_size=6), lambda n: _levels((n, 3, 6, 5), 4)),
    "residual pixelcnn": (
        lambda: models.PixelCNN(1, 6, 2, 4, residual=True, head_channels=5, image_size=6),
        lambda n: _levels((n, 1, 6, 5), 4),
    ),
    "gated pixelcnn": (
        lambda: models.GatedPixelCNN(3, 6, 2, 4, head_channels=6, image_size=6), lambda n: _levels((n, 3, 6, 5), 4)
    ),
    "row pixelrnn": (
        lambda: models.PixelRNN(1, 4, 2, 2, recurrence="row", image_size=6), lambda n: _levels((n, 1, 6, 5), 2)
    ),
    "diagonal pixelrnn": (lambda: models.PixelRNN(1, 4, 2, 2, image_size=6), lambda n: _levels((n, 1, 6, 5), 2)),
    "audio": (lambda: models.CausalAudioNet(4, 6, 3, 2, skip_channels=5, length=9), lambda n: _levels((n, 9), 4)),
    "autoencoder": (lambda: models.Autoencoder(1, 4, 3, image_size=8), lambda n: torch.rand(n, 1, 8, 8)),
    "vae's encoder": (lambda: models.VAE(1, 4, 3, image_size=8).encoder, lambda n: torch.rand(n, 1, 8, 8)),
    "vae's decoder": (lambda: models.VAE(1, 4, 3, image_size=8).decoder, lambda n: torch.randn(n, 3)),
    "dcgan's generator": (lambda: models.DCGAN(3, 4, 5, image_size=8).generator, lambda n: torch.randn(n, 5)),
    "dcgan's discriminator": (
        lambda: models.DCGAN(3, 4, 5, image_size=8).discriminator, lambda n: torch.randn(n, 3, 8, 8)
    ),
}  # fmt: skip


def model_and_input(name, batch=3):
    torch.manual_seed(0)
    model, inputs = MODELS[name]
    return model(), inputs(batch)
