"""What training has to know about a family: one file each, all with the methods of :class:`Objective`."""

from .adversarial import AdversarialObjective, adversarial_step
from .autoencoder import ReconstructionObjective
from .base import OPTIMIZERS, NotFiniteError, Objective, descend
from .likelihood import LikelihoodObjective
from .variational import VariationalObjective

__all__ = [
    "OPTIMIZERS",
    "AdversarialObjective",
    "LikelihoodObjective",
    "NotFiniteError",
    "Objective",
    "ReconstructionObjective",
    "VariationalObjective",
    "adversarial_step",
    "descend",
]
