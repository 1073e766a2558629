"""PyTorch's functions of attention: scaled_dot_product_attention, and what nn.MultiheadAttention does."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import softmax
from .graph import NotTraceable
from .operators import OPERATORS
from .sequences import SequenceFirst, sequence_first
from .tracer import Tracer


@OPERATORS.handles("scaled_dot_product_attention")
def scaled_dot_product_attention(
    tracer: Tracer, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if enable_gqa or dropout_p > 0:
        raise NotTraceable(f"layer {tracer.name()!r}: attention with dropout, or with groups of queries for a key")
    leading, tokens, keys = query.shape[:-2], query.shape[-2], key.shape[-2]
    scores: Any = torch.bmm(
        query.reshape(-1, tokens, query.shape[-1]), key.reshape(-1, keys, key.shape[-1]).transpose(1, 2)
    )
    scores = scores.view(*leading, tokens, keys) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(tokens, keys, dtype=torch.bool, device=tracer.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    tracer.operator = "aten::_safe_softmax"
    weights: Any = softmax(tracer, scores, -1)
    result = torch.bmm(weights.view(-1, tokens, keys), value.reshape(-1, keys, value.shape[-1]))
    return result.view(*leading, tokens, value.shape[-1])


@OPERATORS.handles("multi_head_attention_forward")
def _multi_head_attention(tracer: Tracer, *arguments: Any, **keywords: Any) -> tuple[Tensor, None]:
    """As F.multi_head_attention_forward, on tensors [T, N, C]; without the weights, which a sampler has no use for."""
    bound = inspect.signature(F.multi_head_attention_forward).bind(*arguments, **keywords)
    bound.apply_defaults()
    given: dict[str, Any] = bound.arguments
    for name in ("key_padding_mask", "bias_k", "bias_v", "static_k", "static_v"):
        if given[name] is not None:
            raise NotTraceable(f"layer {tracer.name()!r}: attention with {name}")
    if given["add_zero_attn"]:
        raise NotTraceable(f"layer {tracer.name()!r}: attention with add_zero_attn")
    inputs = [given[name] for name in ("query", "key", "value")]
    if not all(isinstance(x, SequenceFirst) for x in inputs):
        raise NotTraceable(f"layer {tracer.name()!r}: attention over images; give it batch_first=True")
    weights = [given[f"{part}_proj_weight"] for part in "qkv"]
    if not given["use_separate_proj_weight"]:
        weights = list(given["in_proj_weight"].chunk(3))
    biases = [None] * 3 if given["in_proj_bias"] is None else list(given["in_proj_bias"].chunk(3))
    heads, mask = given["num_heads"], given["attn_mask"]
    query, key, value = (
        F.linear(x.images, weight, bias).unflatten(2, (heads, -1)).transpose(1, 2)  # [N, heads, T, d]
        for x, weight, bias in zip(inputs, weights, biases, strict=True)
    )
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = ~mask  # here True forbids
        if mask.dim() == 3:  # [N * heads, T, S]
            mask = mask.unflatten(0, (-1, heads))
    attended = scaled_dot_product_attention(tracer, query, key, value, mask)
    result = F.linear(attended.transpose(1, 2).flatten(2), given["out_proj_weight"], given["out_proj_bias"])
    return sequence_first(tracer, result), None
