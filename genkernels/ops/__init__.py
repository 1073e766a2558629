"""The operators as functions; importing this package registers them under ``torch.ops.genkernels``."""

from .masked_conv.op import masked_conv2d

__all__ = ["masked_conv2d"]
