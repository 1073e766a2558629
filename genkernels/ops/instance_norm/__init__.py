"""Instance norm and activation: y = act(weight * (x - mean) / sqrt(variance + eps) + bias), by image and channel.

    functional.py    the public function and its checks
    schema.py        signatures of the torch operators, and their options by name
    dispatch.py      the kernels by device; fake kernels, autocast, registration
    derivatives.py   backward and forward mode
    reference.py     plain PyTorch: the oracle and the fallback
    cpu.py           arguments and memory around the native kernels
    gpu.py           the same around the Triton kernels

gpu.py imports Triton, and is imported when the first tensor on a GPU arrives.
"""
