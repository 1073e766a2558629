"""The operators as functions; importing this package registers them under ``torch.ops.genkernels``."""

from .conv_bn_act.functional import conv2d_bn_act, conv_transpose2d_bn_act
from .instance_norm.functional import instance_norm_act
from .masked_conv.functional import masked_conv2d
from .masked_conv.gated import masked_conv2d_gated
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
]
