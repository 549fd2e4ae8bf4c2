"""Launches the kernels of attention to a short list of keys.

Axes: b batch, n heads, q queries, k keys, d width of a query and key head, d' of a value head. The caller has asked
`triton_selection.takes_lists` whether the kernels take these tensors. This module imports triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from scalablevit.kernels.short_kernels import backward_kernel, forward_kernel
from scalablevit.kernels.window_attention import block, float32_precision

# Queries of a block. Fewer in the backward pass: 64 would spill on GPUs of compute capability 8 (test_compiled.py).
FORWARD_QUERIES = 64
BACKWARD_QUERIES = 32


def attend_to_few(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale * query @ key^T) @ value for few keys, of any strides.

    Args:
        query: (b, n, q, d).
        key: (b, n, k, d).
        value: (b, n, k, d').
        scale: Factor of the scores.

    Returns:
        (b, n, q, d'), which lies in memory as (b, q, n, d').
    """
    query, key, value = (_with_unit_stride(x) for x in (query, key, value))
    out = _empty_with_heads_inside(query, value.shape[-1])
    b, heads, queries, _ = query.shape
    with torch.cuda.device_of(value):  # triton launches on the current device
        forward_kernel[(triton.cdiv(queries, FORWARD_QUERIES) * b * heads,)](
            query,
            key,
            value,
            out,
            *_strides(query, key, value),
            queries,
            key.shape[2],
            scale,
            **constants(query, value, FORWARD_QUERIES),
        )
    return out


def attend_to_few_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attend_to_few` with respect to its three tensors, from that of its result (b, n, q, d')."""
    tensors = [_with_unit_stride(x) for x in (grad, query, key, value)]
    gradients = [_empty_with_heads_inside(x, x.shape[-1]) for x in (query, key, value)]
    b, heads, queries, _ = query.shape
    with torch.cuda.device_of(value):
        backward_kernel[(b * heads,)](
            *tensors,
            *gradients,
            *_strides(*tensors),
            queries,
            key.shape[2],
            scale,
            **constants(query, value, BACKWARD_QUERIES),
        )
    return gradients[0], gradients[1], gradients[2]


def constants(query: Tensor, value: Tensor, queries: int) -> dict[str, Any]:
    """What a kernel is compiled for; `num_warps` is how many groups of 32 threads do one block of queries."""
    return {
        "HEADS": query.shape[1],
        "KEY_WIDTH": query.shape[-1],
        "VALUE_WIDTH": value.shape[-1],
        "QUERIES": queries,
        "KEYS": block(value.shape[2]),
        "KEY_BLOCK": block(query.shape[-1]),
        "VALUE_BLOCK": block(value.shape[-1]),
        "PRECISION": float32_precision(),
        "enable_fp_fusion": True,
        "num_warps": 4,
        "num_stages": 2,
    }


def _empty_with_heads_inside(x: Tensor, width: int) -> Tensor:
    """(b, n, q, width) for (b, n, q, ...), whose heads lie side by side: (b, q, n, width) in memory."""
    b, heads, length, _ = x.shape
    return torch.empty((b, length, heads, width), dtype=x.dtype, device=x.device).transpose(1, 2)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def _with_unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
