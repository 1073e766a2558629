"""The common ground of the operations.

    differentiable_op.py    an operator with its derivatives in every mode of PyTorch
    prepared_call.py        calls that nothing watches: from Python straight to the CPU kernel
    torch_internals.py      the private names of torch, all of them
    device_choice.py        which kernels take a tensor: the CPU's, the GPU's or none, and why
    implementations.py      which native CPU implementation ran, and how to force one
    autocast.py             casts of an operator's inputs
    activation.py           activations: names, function and slope
    dtypes.py               codes of dtypes, and what sums are kept in
    layout.py               channels_last or contiguous: of results and gradients
    strides.py              strides as kernels are given them
    cuda_device.py          where CUDA kernels are launched
    second_derivatives.py   derivatives of a backward pass in plain PyTorch
    verbose.py              GENKERNELS_VERBOSE: what ran, and why

Nothing here knows an operation.
"""
