"""The model families, assembled from :mod:`genkernels.nn`."""

from .autoencoder import Autoencoder
from .autoregressive import AutoregressiveModel, bits_per_dim
from .base import GenerativeModel
from .causal_audio import CausalAudioNet, mu_law_decode, mu_law_encode
from .dcgan import DCGAN
from .gated_pixelcnn import GatedPixelCNN
from .pixelcnn import PixelCNN
from .pixelrnn import PixelRNN
from .vae import VAE

__all__ = [
    "DCGAN",
    "VAE",
    "Autoencoder",
    "AutoregressiveModel",
    "CausalAudioNet",
    "GatedPixelCNN",
    "GenerativeModel",
    "PixelCNN",
    "PixelRNN",
    "bits_per_dim",
    "mu_law_decode",
    "mu_law_encode",
]
