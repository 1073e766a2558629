"""Masked 2-D convolution: see :func:`genkernels.ops.masked_conv2d`."""
