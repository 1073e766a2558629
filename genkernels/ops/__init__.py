"""The operators as functions; importing this package registers them under ``torch.ops.genkernels``.

    core/             what the operations share
    masked_conv/      masked convolution, alone or in front of a gate
    conv_bn_act/      convolution + batch norm + activation, transposed or not
    instance_norm/    instance norm + activation
    softmax_nll/      last 1x1 convolution + softmax + negative log-likelihood
    wavefront_lstm/   Row LSTM and Diagonal LSTM, with or without the convolution before them

The files of an operation have the same names everywhere: docs/architecture.md.
"""

from .conv_bn_act.functional import conv2d_bn_act, conv_transpose2d_bn_act
from .instance_norm.functional import instance_norm_act
from .masked_conv.functional import masked_conv2d, masked_conv2d_gated
from .softmax_nll.functional import softmax_nll
from .wavefront_lstm.functional import (
    diagonal_bilstm,
    diagonal_bilstm_layer,
    diagonal_lstm,
    diagonal_lstm_layer,
    row_lstm,
    row_lstm_layer,
)

__all__ = [
    "conv2d_bn_act",
    "conv_transpose2d_bn_act",
    "diagonal_bilstm",
    "diagonal_bilstm_layer",
    "diagonal_lstm",
    "diagonal_lstm_layer",
    "instance_norm_act",
    "masked_conv2d",
    "masked_conv2d_gated",
    "row_lstm",
    "row_lstm_layer",
    "softmax_nll",
]
