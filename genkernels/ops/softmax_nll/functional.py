"""``softmax_nll``: a linear layer, its softmax and the negative log-likelihood of targets, in one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.differentiable_op import may_need_derivative
from ..core.dtypes import accumulator
from . import dispatch as _dispatch  # noqa: F401 - gives the operators their kernels
from .derivatives import softmax_nll as _softmax_nll
from .derivatives import softmax_nll_total as _softmax_nll_total

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
REDUCTIONS = ("none", "sum", "mean")


def softmax_nll(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    level_weight: Tensor | None = None,
    channel_groups: int = 1,
    reduction: str = "none",
) -> Tensor:
    """Negative log-likelihood of levels under the softmax of a 1x1 convolution, without its result in memory.

    What ``F.cross_entropy(F.conv2d(x, weight, bias).unflatten(1, (C, L)).transpose(1, 2), target)`` gives, computed a
    few pixels at a time, forward and backward: of 64 images of 32 x 32 in three colours and 256 levels the logits alone
    would be 192 MiB, their gradient as much again.

    Args:
        x: features [N, K, H, W]; float64, float32, bfloat16 or float16. channels_last is read as it is.
        weight: [C * L, K, 1, 1] or [C * L, K]: L logits of each of C colours, colour by colour.
        bias: [C * L] or None.
        target: levels [N, C, H, W], of any integer dtype, 0 .. L - 1. C and L follow from it.
        level_weight: [L], what a target of each level counts, as ``weight`` of ``F.cross_entropy``; None for 1.
        channel_groups: 1, or C: then the features are in C blocks, too, and colour c reads those of the colours up to
            c alone, as a masked 1x1 convolution of type B does (feature k belongs to colour ``k * C // K``).
        reduction: "none"; "sum"; "mean", over the targets' weights as in ``F.cross_entropy``. A sum is quicker to train
            with: its gradients are found in the forward pass, since what they are multiplied by is one number.

    Returns:
        Nats, [N, C, H, W] or a scalar; float64 for float64, else float32. Differentiable any number of times by x,
        weight and bias, backward and forward; with ``torch.compile`` and ``torch.func``.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it, what was expected and what came.

    Source: Rabe & Staats 2021, "Self-attention Does Not Need O(n²) Memory", for a softmax in parts.
    """
    colours, levels = _check(x, weight, bias, target, channel_groups)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(map(repr, REDUCTIONS))}; got {reduction!r}")
    features = x.shape[1]
    live = [features] * colours
    if channel_groups > 1:  # the features of the colours up to c: k * C // K <= c
        live = [min(features, -(-(c + 1) * features // colours)) for c in range(colours)]
    rows = x.permute(0, 2, 3, 1).reshape(-1, features)
    named = target.permute(0, 2, 3, 1).reshape(-1, colours).to(torch.int64)
    tensors = (rows, weight.flatten(1), bias, named)
    counts = None
    if level_weight is not None:
        if level_weight.shape != (levels,):
            raise ValueError(f"level_weight: expected [{levels}]; got shape {list(level_weight.shape)}")
        counts = level_weight.to(accumulator(x.dtype))[named]
    if reduction != "none" and may_need_derivative(*tensors) and not (counts is not None and counts.requires_grad):
        transformed = not any(
            t is not None and t.requires_grad for t in tensors
        )  # torch.func keeps its flags elsewhere
        needs = [t is not None and (t.requires_grad or transformed) for t in tensors[:3]]
        total = _softmax_nll_total(*tensors, counts, live, needs)[0]
    else:
        nll, _ = _softmax_nll(*tensors, live)
        nll = nll if counts is None else nll * counts
        if reduction == "none":
            batch, _, height, width = target.shape
            return nll.view(batch, height, width, colours).permute(0, 3, 1, 2)
        total = nll.sum()
    if reduction == "sum":
        return total
    return total / (target.numel() if counts is None else counts.sum())


def _check(x: Any, weight: Any, bias: Any, target: Any, channel_groups: int) -> tuple[int, int]:
    """The colours and levels; or an error."""
    for name, value in (("x", x), ("weight", weight), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor; got {type(value).__name__}")
    if x.dim() != 4 or x.dtype not in _FLOATS:
        raise ValueError(f"x: expected floating-point [N, K, H, W]; got {x.dtype} {list(x.shape)}")
    expected = [x.shape[0], "C", *x.shape[2:]]
    if target.dim() != 4 or target.shape[0] != x.shape[0] or target.shape[2:] != x.shape[2:]:
        raise ValueError(f"target: expected {expected}; got shape {list(target.shape)}")
    if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
        raise TypeError(f"target: expected an integer dtype; got {target.dtype}")
    colours = target.shape[1]
    shape = list(weight.shape)
    if (
        len(shape) not in (2, 4)
        or shape[1] != x.shape[1]
        or shape[2:] not in ([], [1, 1])
        or shape[0] % max(colours, 1)
    ):
        raise ValueError(f"weight: expected [{colours} * L, {x.shape[1]}] or [..., 1, 1]; got shape {shape}")
    if bias is not None and list(bias.shape) != shape[:1]:
        raise ValueError(f"bias: expected [{shape[0]}]; got shape {list(bias.shape)}")
    if channel_groups not in (1, colours):
        raise ValueError(f"channel_groups: expected 1 or {colours}, the colours of target; got {channel_groups}")
    return colours, shape[0] // colours
