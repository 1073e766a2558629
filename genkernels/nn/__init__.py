"""Drop-in layers: the operators of :mod:`genkernels.ops` as ``torch.nn`` modules.

    masked_conv.py         MaskedConv2d, the layer of PixelCNN and PixelRNN
    gate_conv.py           GateConv2d, a masked convolution to gates that are computed unit by unit
    gated_masked_conv.py   GatedMaskedConv2d, the two stacks of the gated PixelCNN
    conv_bn_act.py         ConvTransposeBnAct2d and ConvBnAct2d, the blocks of a DCGAN
    instance_norm_act.py   InstanceNormAct2d, behind the convolutions of pix2pix and CycleGAN
    minibatch_discrimination.py  MinibatchDiscrimination, how alike the samples of a batch are
    wavefront_lstm.py      RowLSTM and DiagonalBiLSTM
    init.py                random weights that keep the size of features

Each takes the arguments of the layer that it stands in for, and loads its checkpoints.
"""

from .conv_bn_act import ConvBnAct2d, ConvTransposeBnAct2d
from .gated_masked_conv import GatedMaskedConv2d
from .instance_norm_act import InstanceNormAct2d
from .masked_conv import MaskedConv2d
from .minibatch_discrimination import MinibatchDiscrimination
from .wavefront_lstm import DiagonalBiLSTM, RowLSTM

__all__ = [
    "ConvBnAct2d",
    "ConvTransposeBnAct2d",
    "DiagonalBiLSTM",
    "GatedMaskedConv2d",
    "InstanceNormAct2d",
    "MaskedConv2d",
    "MinibatchDiscrimination",
    "RowLSTM",
]
