"""The operators as functions; importing this package registers them under ``torch.ops.genkernels``."""

from .conv_bn_act.op import conv2d_bn_act, conv_transpose2d_bn_act
from .instance_norm.op import instance_norm_act
from .masked_conv.gated import masked_conv2d_gated
from .masked_conv.op import masked_conv2d
from .wavefront_layer.op import diagonal_bilstm_layer, diagonal_lstm_layer, row_lstm_layer
from .wavefront_lstm.op import diagonal_bilstm, diagonal_lstm, row_lstm

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
