"""Convolutions on a GPU as implicit GEMM, in Triton, shared by masked_conv and conv_bn_act.

    availability.py      whether Triton can run here, and why not
    tap_geometry.py      which pixels the taps read, and which taps are live
    tuning.py            which tile sizes a problem is tried with, and the cache of what won; imports no Triton
    launch.py            common parts of launches: device, layouts, width of indices, tile sizes, split-K
    arguments.py         kernel arguments in named bundles
    elementwise.py       activations and their derivatives, rounding, loads and stores of image tiles
    pack.py              the weight's live taps, laid out as the products read them
    epilogue.py          scale, bias, activation or gate, and statistics of a tile of y
    forward.py           y[pixel, o] = act(sum over taps and c of x[pixel + tap, c] * w[tap, c, o] + bias)
    weight_gradient.py   grad_w[m, tap, c] = sum over pixels of a[pixel, m] * x[pixel + tap, c]
    gradient.py          the incoming gradient through activation and batch norm, and its sums over pixels
    norm.py              statistics of the forward tiles joined, and the pass that makes y of z

Kernels stand above the function that launches them. Nothing outside these files and the operations' own ``gpu.py``
imports Triton, and these are imported when the first tensor on a GPU arrives.
"""
