"""Device of the Triton kernels' tests: a GPU, or, in a process of their own, Triton's interpreter.

A file of such tests says ``pytestmark = triton_tests``. ``test_interpreted.py`` runs these files again with
``TRITON_INTERPRET=1``, which must be set before Triton is imported, on CPU tensors: the very same kernels, statement by
statement in NumPy, about a thousand times slower than a CPU kernel. Shapes are small for that reason, and the
interpreter's look at every sum and product of integers for overflow, nearly half of its time, is left to the tests that
are about it: ``overflow_is_an_error``.
"""

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch

from genkernels.ops.conv_bn_act import dispatch as conv_bn_act_kernels
from genkernels.ops.instance_norm import dispatch as instance_norm_kernels
from genkernels.ops.masked_conv import dispatch as masked_conv_kernels
from genkernels.ops.softmax_nll import dispatch as softmax_nll_kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
_RUNS = importlib.util.find_spec("triton") is not None and (INTERPRETED or torch.cuda.is_available())


@contextlib.contextmanager
def overflow_is_an_error() -> Iterator[None]:
    """Lets the interpreter raise where an integer overflows; a GPU does not tell."""
    if INTERPRETED:
        _check_overflow(True)
    try:
        yield
    finally:
        if INTERPRETED:
            _check_overflow(False)


triton_tests = [
    pytest.mark.gpu,
    pytest.mark.skipif(not _RUNS, reason="no GPU with Triton here; test_interpreted.py runs this file without"),
]

if INTERPRETED:
    from triton.runtime.interpreter import interpreter_builder

    def _check_overflow(on: bool) -> None:
        interpreter_builder.options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=on, debug=on)

    _check_overflow(False)

    # CPU tensors take the way of GPU tensors.
    from genkernels.ops.conv_bn_act import gpu as conv_bn_act_triton
    from genkernels.ops.instance_norm import gpu as instance_norm_triton
    from genkernels.ops.masked_conv import gpu as masked_conv_triton
    from genkernels.ops.softmax_nll import gpu as softmax_nll_triton

    masked_conv_kernels.keep_prepared = lambda *call: None  # for the CPU kernel
    masked_conv_kernels.gate_is_fused = masked_conv_kernels._runs_triton = lambda x: True
    masked_conv_kernels._backend = lambda x: masked_conv_triton
    conv_bn_act_kernels._backend = lambda x: conv_bn_act_triton
    instance_norm_kernels._backend = lambda x: instance_norm_triton
    softmax_nll_kernels._backend = lambda x, weight, target, live: softmax_nll_triton
