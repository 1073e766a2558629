"""Drop-in layers: the operators of :mod:`genkernels.ops` as ``torch.nn`` modules."""

from .masked_conv import MaskedConv2d

__all__ = ["MaskedConv2d"]
