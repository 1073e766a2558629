"""Masked 2-D convolution, alone or in front of a gate: see :func:`genkernels.ops.masked_conv2d`.

    functional.py    the public functions and their checks
    schema.py        signatures of the torch operators, and their options by name
    dispatch.py      the kernels by device; fake kernels, autocast, registration
    derivatives.py   backward and forward mode
    reference.py     plain PyTorch: the oracle and the fallback
    cpu.py           arguments and memory around the native kernels
    gpu.py           the same around the Triton kernels
    mask.py          which taps are live

gpu.py imports Triton, and is imported when the first tensor on a GPU arrives.
"""
