"""genkernels: fast kernels, layers and models for generative image models.

Importing this package never fails for want of a compiler, a GPU, Triton or the native extension:
`available_backends()` tells what can run here and why something cannot.
"""

from .acceleration import accelerate, restore
from .allocator import keep_freed_memory
from .backends import available_backends, build_info
from .sampling import fast_sampler
from .version import __version__

__all__ = [
    "__version__",
    "accelerate",
    "available_backends",
    "build_info",
    "fast_sampler",
    "keep_freed_memory",
    "restore",
]
