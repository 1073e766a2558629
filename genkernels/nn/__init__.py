"""Drop-in layers: the operators of :mod:`genkernels.ops` as ``torch.nn`` modules."""

from .masked_conv import MaskedConv2d
from .wavefront_lstm import DiagonalBiLSTM, RowLSTM

__all__ = ["DiagonalBiLSTM", "MaskedConv2d", "RowLSTM"]
