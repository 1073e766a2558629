"""Softmax and negative log-likelihood behind the last 1x1 convolution, without the logits in memory.

functional.py    the public function: checks, images as rows, reductions
schema.py        the operators' signatures
dispatch.py      kernels by device, fake kernels, registration
derivatives.py   backward and forward mode to any order
reference.py     plain PyTorch
cpu.py           the native CPU kernels
    gpu.py           Triton kernels

gpu.py imports Triton, and is imported when the first tensor on a GPU arrives.
"""
