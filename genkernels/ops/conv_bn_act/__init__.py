"""Convolution + batch norm + activation, transposed or not: see :func:`genkernels.ops.conv_transpose2d_bn_act`."""
