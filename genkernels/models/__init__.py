"""The model families, assembled from :mod:`genkernels.nn`."""

from .autoregressive import AutoregressiveModel, bits_per_dim
from .pixelcnn import PixelCNN

__all__ = ["AutoregressiveModel", "PixelCNN", "bits_per_dim"]
