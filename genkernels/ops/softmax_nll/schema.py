"""The operators' signatures; kernels and derivatives are registered by dispatch.py and derivatives.py.

    genkernels::softmax_nll           x, weight, bias, target -> nll and log_sum_exp
    genkernels::softmax_nll_total     x, weight, bias, target, counts -> the sum of counts * nll, and its gradients
    genkernels::softmax_nll_backward  grad_nll, x, weight, bias, target, log_sum_exp -> gradients of x, weight and bias

x is [P, K], rows of features; weight [C * L, K] and bias [C * L] (or None) make of them C times L logits, of which
``target`` [P, C], int64 in 0 .. L - 1, names one each. ``nll`` and ``log_sum_exp`` are [P, C], of float64 for float64,
else float32. ``live`` [C]: colour c reads the first live[c] features, whatever stands in the
weight behind them. ``counts`` is [P, C] or None for 1. ``needs`` says which gradients are wanted; the others come back
empty. Those that come with a total are of the accumulator's dtype.
"""

from __future__ import annotations

import torch

_TENSORS = "Tensor x, Tensor weight, Tensor? bias, Tensor target"

library = torch.library.Library("genkernels", "FRAGMENT")
library.define(f"softmax_nll({_TENSORS}, int[] live) -> (Tensor, Tensor)")
library.define(
    f"softmax_nll_backward(Tensor grad_nll, {_TENSORS}, Tensor log_sum_exp, int[] live, bool[3] needs) "
    "-> (Tensor, Tensor, Tensor)"
)
library.define(
    f"softmax_nll_total({_TENSORS}, Tensor? counts, int[] live, bool[3] needs) -> (Tensor, Tensor, Tensor, Tensor)"
)
softmax_nll_op = torch.ops.genkernels.softmax_nll.default
softmax_nll_total_op = torch.ops.genkernels.softmax_nll_total.default
softmax_nll_backward_op = torch.ops.genkernels.softmax_nll_backward.default
