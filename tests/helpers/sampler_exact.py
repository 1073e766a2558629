"""The promise of a sampler: on every executor the levels of the loop of full forward passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genkernels.distributions import Custom
from genkernels.sampling import FastSampler
from genkernels.sampling.executors import cuda
from helpers import cuda_emulated
from helpers.sampler_checks import assert_same_where_clear


def assert_exact_on_every_executor(fast: FastSampler, n: int, size: tuple[int, int], condition: Any = None) -> Tensor:
    """Levels drawn by PyTorch, by the CPU's executor and by the CUDA executor, emulated, are those of the loop.

    But for images whose first difference lies where u is next to a boundary. A function of the user's own that draws
    runs on the first two alone. Returns the loop's levels.
    """
    backends = ("torch", "cpu") if isinstance(fast.distribution, Custom) else ("torch", "cpu", "cuda")
    generator = torch.Generator().manual_seed(1)
    uniforms = torch.rand(n, fast.in_channels, *size, generator=generator)
    program = fast.compile(n, size, condition)
    loop = fast.sample(n, size, uniforms=uniforms, condition=condition, backend="full_forward")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "DEVICE_TYPE", "cpu")
        patch.setattr(cuda, "device_of", lambda t: cuda_emulated.device())
        for backend in backends:
            drawn = fast.sample(n, size, uniforms=uniforms, condition=condition, backend=backend)
            assert drawn.dtype == loop.dtype
            assert_same_where_clear(program, drawn, loop, uniforms)
    return loop
