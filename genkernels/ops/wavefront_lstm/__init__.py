"""The convolutional LSTM whose steps sweep an image: Row LSTM and Diagonal (Bi)LSTM, alone or with their convolution.

    functional.py    the public functions
    arguments.py     checks of what they are given
    schema.py        signatures of the torch operators, their arguments by name, empty results
    dispatch.py      which implementation runs; fake kernels, autocast, registration
    derivatives.py   backward and forward mode, to any order
    geometry.py      which cells make up a step, and which earlier cells each of them reads
    reference.py     plain PyTorch
    cpu.py           layouts, allocation and arguments around the C++ kernels
    cpu_layer.py     convolution and recurrence in one, a few images at a time, on these kernels
    gpu.py           layouts, allocation and arguments around the CUDA kernels
    converters.py    weights of public PixelRNN versions in the layout of this operation

A layer (``row_lstm_layer`` and its neighbours) is a recurrence with input weights: one family of operators, of which
``schema.Operator`` knows the order of arguments.
"""
