"""The model families, assembled from :mod:`genkernels.nn`.

base.py              the base class of all families
autoregressive.py    that of those with an exact likelihood: input convention, likelihood, sampling
fvbn.py              fully visible belief network: logistic conditionals
pixelcnn.py          PixelCNN
gated_pixelcnn.py    gated PixelCNN: two stacks, no blind spot, classes
pixelrnn.py          PixelRNN: Row and Diagonal LSTM
causal_audio.py      PixelCNN along time, and the µ-law
variational.py       base class of variational autoencoders: encoder and bounds
vae.py               variational autoencoder
pixel_vae.py         VAE with a PixelCNN as its decoder
autoencoder.py       autoencoder, and a classifier that starts from its encoder
adversarial_autoencoder.py  autoencoder whose codes are distributed as the prior
classifier.py        classes of images, to judge what the others draw
adversarial.py       base class of GANs: classes, minibatch discrimination, spectral norm
gan.py               GAN of multilayer perceptrons
dcgan.py             DCGAN: generator and discriminator
conv_stacks.py       an image down to a vector, and a vector up to an image
"""

from .adversarial import AdversarialModel
from .adversarial_autoencoder import AdversarialAutoencoder
from .autoencoder import Autoencoder
from .autoregressive import AutoregressiveModel, bits_per_dim
from .base import GenerativeModel
from .causal_audio import CausalAudioNet, mu_law_decode, mu_law_encode
from .classifier import Classifier
from .dcgan import DCGAN
from .fvbn import FVBN
from .gan import GAN
from .gated_pixelcnn import GatedPixelCNN
from .pixel_vae import PixelVAE
from .pixelcnn import PixelCNN
from .pixelrnn import PixelRNN
from .vae import VAE
from .variational import VariationalModel

__all__ = [
    "DCGAN",
    "FVBN",
    "GAN",
    "VAE",
    "AdversarialAutoencoder",
    "AdversarialModel",
    "Autoencoder",
    "AutoregressiveModel",
    "CausalAudioNet",
    "Classifier",
    "GatedPixelCNN",
    "GenerativeModel",
    "PixelCNN",
    "PixelRNN",
    "PixelVAE",
    "VariationalModel",
    "bits_per_dim",
    "mu_law_decode",
    "mu_law_encode",
]
