"""The model families, assembled from :mod:`genkernels.nn`."""

from .autoregressive import AutoregressiveModel, bits_per_dim
from .causal_audio import CausalAudioNet, mu_law_decode, mu_law_encode
from .gated_pixelcnn import GatedPixelCNN
from .pixelcnn import PixelCNN
from .pixelrnn import PixelRNN

__all__ = [
    "AutoregressiveModel",
    "CausalAudioNet",
    "GatedPixelCNN",
    "PixelCNN",
    "PixelRNN",
    "bits_per_dim",
    "mu_law_decode",
    "mu_law_encode",
]
