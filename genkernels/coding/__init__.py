"""Lossless compression of images by an autoregressive model: its probabilities drive a range coder.

codec.py       compress and decompress
container.py   what a compressed file holds besides the coder's words
"""

from .codec import compress, decompress
from .container import CodingError

__all__ = ["CodingError", "compress", "decompress"]
