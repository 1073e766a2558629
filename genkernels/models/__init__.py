"""The model families, assembled from :mod:`genkernels.nn`."""

from .autoregressive import AutoregressiveModel, bits_per_dim
from .pixelcnn import PixelCNN
from .pixelrnn import PixelRNN

__all__ = ["AutoregressiveModel", "PixelCNN", "PixelRNN", "bits_per_dim"]
