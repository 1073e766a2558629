"""Training objectives, one per family: how a step is taken, what is measured, which pictures are made.

base.py           their common methods, :class:`Objective`
likelihood.py     autoregressive models: the exact likelihood
variational.py    VAEs: a bound of the likelihood
autoencoder.py    autoencoders: the squared error of the reconstruction
adversarial_autoencoder.py  adversarial autoencoders: the same, and codes that match the prior
adversarial_losses.py  the losses of GANs
adversarial.py    GANs: a generator and a discriminator
classification.py  classifiers: the cross-entropy with the labels
"""

from .adversarial import AdversarialObjective, adversarial_step
from .adversarial_autoencoder import AdversarialAutoencoderObjective
from .autoencoder import ReconstructionObjective
from .base import Drawing, Evaluating, Objective
from .classification import ClassificationObjective
from .likelihood import LikelihoodObjective
from .variational import VariationalObjective

__all__ = [
    "AdversarialAutoencoderObjective",
    "AdversarialObjective",
    "ClassificationObjective",
    "Drawing",
    "Evaluating",
    "LikelihoodObjective",
    "Objective",
    "ReconstructionObjective",
    "VariationalObjective",
    "adversarial_step",
]
