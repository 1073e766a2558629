"""The operation in plain PyTorch: every dtype, every device, and the oracle.

This file, cpu.py and gpu.py hold the same three functions, which dispatch.py calls. With
d = grad * (softmax(z) - one-hot), the gradients are d @ weight, dᵀ @ x and the sum of d.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.dtypes import accumulator


def _live_weight(weight: Tensor, live: Sequence[int], dtype: torch.dtype) -> Tensor:
    """[C, L, K], zero where a colour does not read."""
    features = torch.arange(weight.shape[1], device=weight.device)
    mask = torch.stack([features < count for count in live])[:, None]
    return weight.to(dtype).view(len(live), -1, weight.shape[1]) * mask


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, live: Sequence[int]) -> Tensor:
    """[P, C, L] in the accumulator's dtype."""
    dtype = accumulator(x.dtype)
    logits = torch.einsum("pk,clk->pcl", x.to(dtype), _live_weight(weight, live, dtype))
    return logits if bias is None else logits + bias.to(dtype).view(logits.shape[1:])


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, live: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """nll and log_sum_exp, [P, C]; differentiable."""
    logits = _logits(x, weight, bias, live)
    log_sum_exp = logits.logsumexp(2)
    return log_sum_exp - logits.gather(2, target[:, :, None])[:, :, 0], log_sum_exp


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, log_sum_exp: Tensor,
    live: Sequence[int], needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients of x, weight and bias that are needed."""
    logits = _logits(x, weight, bias, live)
    one_hot = F.one_hot(target, logits.shape[2])
    d = grad[:, :, None] * ((logits - log_sum_exp[:, :, None]).exp() - one_hot)
    own = _live_weight(weight, live, d.dtype)
    grad_weight = None
    if needs[1]:
        by_colour = torch.einsum("pcl,pk->clk", d, x.to(d.dtype))
        grad_weight = _live_weight(by_colour.flatten(0, 1), live, d.dtype).flatten(0, 1).to(weight.dtype)
    return (
        torch.einsum("pcl,clk->pk", d, own).to(x.dtype) if needs[0] else None,
        grad_weight,
        d.sum(0).flatten().to(bias.dtype) if needs[2] and bias is not None else None,
    )


def total(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, counts: Tensor | None, live: Sequence[int],
    needs: Sequence[bool],
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:  # fmt: skip
    """The sum of counts * nll, and its gradients in the accumulator's dtype."""
    wide = accumulator(x.dtype)
    x, weight, bias = x.to(wide), weight.to(wide), None if bias is None else bias.to(wide)
    nll, log_sum_exp = forward(x, weight, bias, target, live)
    scale = torch.ones_like(nll) if counts is None else counts.to(nll.dtype)
    return (nll * scale).sum(), backward(scale, x, weight, bias, target, log_sum_exp, live, needs)
