"""Drop-in layers: the operators of :mod:`genkernels.ops` as ``torch.nn`` modules."""

from .conv_bn_act import ConvBnAct2d, ConvTransposeBnAct2d
from .gated_masked_conv import GatedMaskedConv2d
from .instance_norm_act import InstanceNormAct2d
from .masked_conv import MaskedConv2d
from .wavefront_lstm import DiagonalBiLSTM, RowLSTM

__all__ = [
    "ConvBnAct2d",
    "ConvTransposeBnAct2d",
    "DiagonalBiLSTM",
    "GatedMaskedConv2d",
    "InstanceNormAct2d",
    "MaskedConv2d",
    "RowLSTM",
]
