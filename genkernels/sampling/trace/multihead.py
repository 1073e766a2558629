"""PyTorch's functions of attention: scaled_dot_product_attention, and what nn.MultiheadAttention does."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import SequenceFirst, sequence_first, softmax
from .graph import NotTraceable
from .operators import OPERATORS
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
def _multi_head_attention(
    tracer: Tracer, query: Any, key: Any, value: Any, embed_dim: int, num_heads: int, in_weight: Tensor | None,
    in_bias: Tensor | None, bias_k: Tensor | None, bias_v: Tensor | None, add_zero_attn: bool, dropout: float,
    out_weight: Tensor, out_bias: Tensor | None, training: bool = True, key_padding_mask: Tensor | None = None,
    need_weights: bool = True, attn_mask: Tensor | None = None, use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None, k_proj_weight: Tensor | None = None, v_proj_weight: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """As F.multi_head_attention_forward, on tensors [T, N, C]; without the weights, which a sampler has no use for."""
    if key_padding_mask is not None or bias_k is not None or bias_v is not None or add_zero_attn:
        raise NotTraceable(f"layer {tracer.name()!r}: attention with key_padding_mask, add_bias_kv or add_zero_attn")
    inputs = [x.images if isinstance(x, SequenceFirst) else x for x in (query, key, value)]
    if not isinstance(query, SequenceFirst):
        raise NotTraceable(f"layer {tracer.name()!r}: attention over images; give it batch_first=True")
    weights = [q_proj_weight, k_proj_weight, v_proj_weight]
    if not use_separate_proj_weight:
        assert in_weight is not None
        weights = list(in_weight.chunk(3))
    biases = [None] * 3 if in_bias is None else list(in_bias.chunk(3))
    projected = [F.linear(x, weight, bias) for x, weight, bias in zip(inputs, weights, biases, strict=True)]  # type: ignore[arg-type]
    split = [x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in projected]  # [N, heads, T, d]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask  # here True forbids
        if attn_mask.dim() == 3:  # [N * heads, T, S]
            attn_mask = attn_mask.unflatten(0, (-1, num_heads))
    attended = scaled_dot_product_attention(tracer, *split, attn_mask)
    result = F.linear(attended.transpose(1, 2).flatten(2), out_weight, out_bias)
    return sequence_first(tracer, result), None
