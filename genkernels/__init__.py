"""genkernels: fast kernels, layers and models for generative image models.

Importing this package never fails for want of a compiler, a GPU, Triton or the native extension:
`available_backends()` tells what can run here and why something cannot.

    ops/             the operators as functions, differentiable to any order
    nn/              drop-in layers
    models/          model families
    distributions/   of a pixel's levels: what models predict and samplers draw from
    sampling/        fast_sampler
    acceleration/    accelerate, restore
    train/, cli/     what the command line runs
    triton_conv/     convolutions in Triton, which ops/ launches on a GPU
    backends.py      what can run here
    allocator.py     keep_freed_memory
    timing.py        interleaved timing
    arguments.py     checks of arguments that several public functions take
    version.py       the version, read by the build too
    _C.pyi           the native core, from csrc/

docs/architecture.md shows the way of a call through them.
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
