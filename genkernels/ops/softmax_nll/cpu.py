"""The native CPU kernels: allocation around ``_C``; the functions are those of reference.py.

The kernels are float32: features and weights of 16 bits are converted, which takes a fraction of what logits would.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import backends

MOST_LEVELS = 16384

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of x, weight and bias


def _address(values: Tensor | None) -> int:
    return 0 if values is None else values.data_ptr()


def _float(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.float().contiguous()


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, live: Sequence[int]
) -> tuple[Tensor, Tensor]:
    rows, features = x.shape
    wide, own, shift, levels = (
        x.float().contiguous(),
        weight.float().contiguous(),
        _float(bias),
        target.to(torch.uint16).contiguous(),
    )
    nll, log_sum_exp = (torch.empty(target.shape) for _ in range(2))
    done = backends.require_native().softmax_nll_forward(
        threads=torch.get_num_threads(),
        sizes=(rows, features, len(live), weight.shape[0] // len(live)),
        live=list(live),
        x=wide.data_ptr(),
        weight=own.data_ptr(),
        bias=_address(shift),
        target=levels.data_ptr(),
        nll=nll.data_ptr(),
        log_sum_exp=log_sum_exp.data_ptr(),
    )
    if not done:
        raise MemoryError("softmax_nll: no memory for the scratch of the forward kernel")
    return nll, log_sum_exp


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, log_sum_exp: Tensor,
    live: Sequence[int], needs: Sequence[bool],
) -> Gradients:  # fmt: skip
    grads = _gradients(grad, x, weight, bias, target, log_sum_exp.contiguous(), None, live, needs)
    a, b, c = (
        None if g is None or like is None else g.to(like.dtype)
        for g, like in zip(grads, (x, weight, bias), strict=True)
    )
    return a, b, c


def total(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, counts: Tensor | None, live: Sequence[int],
    needs: Sequence[bool],
) -> tuple[Tensor, Gradients]:  # fmt: skip
    nll = torch.empty(target.shape)
    grads = _gradients(
        torch.ones(target.shape) if counts is None else counts, x, weight, bias, target, None, nll, live, needs
    )
    return (nll if counts is None else nll * counts).sum(), grads


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, log_sum_exp: Tensor | None,
    nll: Tensor | None, live: Sequence[int], needs: Sequence[bool],
) -> Gradients:  # fmt: skip
    """In float32."""
    rows, features = x.shape
    wide, own, shift = x.float().contiguous(), weight.float().contiguous(), _float(bias)
    levels, scale = target.to(torch.uint16).contiguous(), grad.float().contiguous()
    grads = [
        torch.empty(like.shape) if need and like is not None else None
        for like, need in zip((x, weight, bias), needs, strict=True)
    ]
    done = backends.require_native().softmax_nll_backward(
        threads=torch.get_num_threads(),
        sizes=(rows, features, len(live), weight.shape[0] // len(live)),
        live=list(live),
        x=wide.data_ptr(),
        weight=own.data_ptr(),
        bias=_address(shift),
        target=levels.data_ptr(),
        log_sum_exp=_address(log_sum_exp),
        grad=scale.data_ptr(),
        nll=_address(nll),
        grad_x=_address(grads[0]),
        grad_weight=_address(grads[1]),
        grad_bias=_address(grads[2]),
    )
    if not done:
        raise MemoryError("softmax_nll: no memory for the scratch of the backward kernel")
    return grads[0], grads[1], grads[2]
