"""Convolution + batch norm + activation, transposed or not: see :func:`genkernels.ops.conv_transpose2d_bn_act`.

    functional.py    the public functions and their checks
    schema.py        signatures of the torch operators, and their options by name
    dispatch.py      the kernels by device; fake kernels, autocast, registration
    derivatives.py   backward and forward mode
    reference.py     plain PyTorch: the oracle and the fallback
    cpu.py           arguments and memory around the native kernels
    gpu.py           the same around the Triton kernels
    geometry.py      sizes of a convolution, and what a batch norm hands to the kernels
    heuristics.py    which calls of layers are quicker in PyTorch's own operators
    distributed.py   batch statistics over several processes

gpu.py imports Triton, and is imported when the first tensor on a GPU arrives.
"""
