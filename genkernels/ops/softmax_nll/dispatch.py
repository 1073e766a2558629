"""Kernels by device, fake kernels and registration."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..core.device_choice import kernels_for
from ..core.dtypes import accumulator
from . import cpu, reference, schema
from .derivatives import softmax_nll, softmax_nll_backward, softmax_nll_total


def _backend(x: Tensor, weight: Tensor, target: Tensor, live: Sequence[int]) -> ModuleType:
    """What computes a call; looked at here are the targets' values, which are places in memory to the kernels.

    Here and not before, since in a compiled program no other code sees them. (Not on a GPU, which would wait.)
    """
    levels = weight.shape[0] // len(live)
    if target.is_cpu:
        low, high = (value.item() for value in torch.aminmax(target))
        if low < 0 or high >= levels:
            raise ValueError(f"target: expected levels 0 .. {levels - 1}; got {low} .. {high}")
    if x.is_cpu and levels > cpu.MOST_LEVELS:
        return reference
    return kernels_for(x, cpu, reference)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, live: Sequence[int]
) -> tuple[Tensor, Tensor]:
    if target.numel() == 0:
        return _forward_fake(x, weight, bias, target, live)
    with torch.autocast(x.device.type, enabled=False):
        return _backend(x, weight, target, live).forward(x, weight, bias, target, live)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, log_sum_exp: Tensor,
    live: Sequence[int], needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    empty = x.new_empty(0)
    if target.numel() == 0:
        a, b, c = (
            torch.zeros_like(like, memory_format=torch.contiguous_format) if need and like is not None else empty
            for like, need in zip((x, weight, bias), needs, strict=True)
        )
        return a, b, c
    with torch.autocast(x.device.type, enabled=False):
        found = _backend(x, weight, target, live).backward(grad, x, weight, bias, target, log_sum_exp, live, needs)
    a, b, c = (empty if g is None else g.contiguous() for g in found)
    return a, b, c


def _total(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, counts: Tensor | None, live: Sequence[int],
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    empty = x.new_empty(0)
    with torch.autocast(x.device.type, enabled=False):
        backend = reference if target.numel() == 0 else _backend(x, weight, target, live)
        total, found = backend.total(x, weight, bias, target, counts, live, needs)
    a, b, c = (empty if g is None else g.contiguous() for g in found)
    return total, a, b, c


def _total_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, counts: Tensor | None, live: Any,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    wide = accumulator(x.dtype)
    grads = _backward_fake(x, x, weight, bias, target, x, live, needs)
    total, (a, b, c) = x.new_empty((), dtype=wide), (g.to(wide) if g.numel() else g for g in grads)
    return total, a, b, c


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, live: Any) -> tuple[Tensor, Tensor]:
    dtype = accumulator(x.dtype)
    return x.new_empty(target.shape, dtype=dtype), x.new_empty(target.shape, dtype=dtype)


def _backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, log_sum_exp: Tensor, live: Any,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    a, b, c = (
        torch.empty_like(like, memory_format=torch.contiguous_format) if need and like is not None else x.new_empty(0)
        for like, need in zip((x, weight, bias), needs, strict=True)
    )
    return a, b, c


softmax_nll.use_kernel(_forward)
softmax_nll.use_formula(reference.forward)
softmax_nll_total.use_kernel(_total)
softmax_nll_backward.use_kernel(_backward)
for _name, _kernel, _fake in (
    ("softmax_nll", _forward, _forward_fake),
    ("softmax_nll_total", _total, _total_fake),
    ("softmax_nll_backward", _backward, _backward_fake),
):
    schema.library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"genkernels::{_name}", _fake, lib=schema.library)
