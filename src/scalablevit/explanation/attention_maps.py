"""Where Scalable Self-Attention looks: the probabilities that its fused kernels never hold, computed once more.

Axes: b batch, h height, w width, c channels, n heads, q queries, k keys, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from scalablevit.attention import ScalableSelfAttention
from scalablevit.dot_product import split_heads
from scalablevit.keys_values import LinearKeysValues

_SCORES = 2**24  # that are held at once


@torch.no_grad()
def attention_probabilities(
    attention: ScalableSelfAttention, x: Tensor, queries: Sequence[int] | None = None
) -> Tensor:
    """What each query gives of its attention to each key, of the module's own projections.

    Args:
        attention: The module.
        x: The map that it is given, (1, h, w, c).
        queries: Positions on the map, row by row: ``row * w + column``; None: all.

    Returns:
        (n, q, k), whose sum over k is 1; `key_grid` says how the keys lie.
    """
    query, key, _ = _projected(attention, x)
    chosen = query if queries is None else query[:, list(queries)]
    return (chosen * attention.scale @ key.transpose(1, 2)).softmax(-1)


@torch.no_grad()
def mean_attention(attention: ScalableSelfAttention, x: Tensor) -> Tensor:
    """The mean of `attention_probabilities` over all queries, (n, k), without holding all of them at once."""
    query, key, _ = _projected(attention, x)
    queries_at_once = max(_SCORES // (key.shape[0] * key.shape[1]), 1)
    parts = query.split(queries_at_once, dim=1)
    sums: Any = sum((part * attention.scale @ key.transpose(1, 2)).softmax(-1).sum(1) for part in parts)
    return sums / query.shape[1]


def key_grid(attention: ScalableSelfAttention, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the keys of a map: a map smaller than the reduction factor is filled up to one."""
    factor = reduction_factor(attention)
    return max(height // factor, 1), max(width // factor, 1)


def reduction_factor(attention: ScalableSelfAttention) -> int:
    """How many positions, along each axis, become one key."""
    reduction = attention.keys_values
    return 1 if isinstance(reduction, LinearKeysValues) else cast(Any, reduction).reduction_factor


def _projected(attention: ScalableSelfAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (n, q, d), keys (n, k, d) and values (n, k, d')."""
    keys, values = attention.keys_values(x)
    lists = (attention.to_q(x).flatten(1, 2), keys, values)
    query, key, value = (split_heads(each, attention.heads)[0] for each in lists)
    return query, key, value
