"""Attention to a short list of keys as two Triton kernels, forward and backward.

Axes: b batch, n heads, q queries, k keys, d width of a query and key head, d' width of a value head. SSA has 49 keys at
224 pixels, whatever the stage, and up to 3136 queries: all scores of a query lie in registers, so that no running
softmax is needed, and widths of keys and values differ without being padded in memory. The forward does one block of
queries of one head of one image per program. The backward does all queries of a head of an image, block by block, so
that the sums for keys and values are made in registers, in a fixed order. Products and sums are as in `window_kernels`.

This module imports triton: import it only where `selection` says that a kernel runs.
"""

import triton
import triton.language as tl

from scalablevit.kernels.window_kernels import softmax

# Triton reads the annotations, as `window_kernels` says: they are not postponed.


@triton.jit
def _at(start: tl.tensor, position: tl.tensor, stride: tl.tensor, channel: tl.tensor) -> tl.tensor:
    """Where the channels of positions lie: (q, d) or (k, d) pointers. 64 bits: a list may pass 2**31 elements."""
    return start + (position.to(tl.int64) * stride)[:, None] + channel[None, :]


@triton.jit(do_not_specialize=["queries", "keys"])
def forward_kernel(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    out: tl.tensor,
    query_stride_b: tl.tensor,
    query_stride_n: tl.tensor,
    query_stride_q: tl.tensor,
    key_stride_b: tl.tensor,
    key_stride_n: tl.tensor,
    key_stride_k: tl.tensor,
    value_stride_b: tl.tensor,
    value_stride_n: tl.tensor,
    value_stride_k: tl.tensor,
    queries: int,
    keys: int,
    scale: float,
    HEADS: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    blocks = tl.cdiv(queries, QUERIES)
    head = ((tl.program_id(0) // blocks) % HEADS).to(tl.int64)
    image = (tl.program_id(0) // blocks // HEADS).to(tl.int64)
    q_at, k_at = (tl.program_id(0) % blocks) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, KEYS)
    key_channel, value_channel = tl.arange(0, KEY_BLOCK), tl.arange(0, VALUE_BLOCK)
    has_key, has_value = (key_channel < KEY_WIDTH)[None, :], (value_channel < VALUE_WIDTH)[None, :]
    is_query, is_key = (q_at < queries)[:, None], (k_at < keys)[:, None]

    query += image * query_stride_b + head * query_stride_n
    key += image * key_stride_b + head * key_stride_n
    value += image * value_stride_b + head * value_stride_n
    q = tl.load(_at(query, q_at, query_stride_q, key_channel), mask=is_query & has_key, other=0.0)  # (q, d)
    k = tl.load(_at(key, k_at, key_stride_k, key_channel), mask=is_key & has_key, other=0.0)  # (k, d)
    v = tl.load(_at(value, k_at, value_stride_k, value_channel), mask=is_key & has_value, other=0.0)  # (k, d')

    weights, sums = softmax(tl.dot(q, tl.trans(k), input_precision=PRECISION), scale, k_at < keys)  # (q, k)
    result = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION) / sums[:, None]  # (q, d')
    out += (image * queries * HEADS + head) * VALUE_WIDTH  # heads side by side, as the projection after it wants them
    out_at = _at(out, q_at, HEADS * VALUE_WIDTH, value_channel)
    tl.store(out_at, result.to(out.dtype.element_ty), mask=is_query & has_value)


@triton.jit(do_not_specialize=["queries", "keys"])
def backward_kernel(
    grad: tl.tensor,
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    grad_query: tl.tensor,
    grad_key: tl.tensor,
    grad_value: tl.tensor,
    grad_stride_b: tl.tensor,
    grad_stride_n: tl.tensor,
    grad_stride_q: tl.tensor,
    query_stride_b: tl.tensor,
    query_stride_n: tl.tensor,
    query_stride_q: tl.tensor,
    key_stride_b: tl.tensor,
    key_stride_n: tl.tensor,
    key_stride_k: tl.tensor,
    value_stride_b: tl.tensor,
    value_stride_n: tl.tensor,
    value_stride_k: tl.tensor,
    queries: int,
    keys: int,
    scale: float,
    HEADS: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    head, image = (tl.program_id(0) % HEADS).to(tl.int64), (tl.program_id(0) // HEADS).to(tl.int64)
    k_at, key_channel, value_channel = tl.arange(0, KEYS), tl.arange(0, KEY_BLOCK), tl.arange(0, VALUE_BLOCK)
    has_key, has_value = (key_channel < KEY_WIDTH)[None, :], (value_channel < VALUE_WIDTH)[None, :]
    is_key = (k_at < keys)[:, None]

    grad += image * grad_stride_b + head * grad_stride_n
    query += image * query_stride_b + head * query_stride_n
    key += image * key_stride_b + head * key_stride_n
    value += image * value_stride_b + head * value_stride_n
    grad_query += (image * queries * HEADS + head) * KEY_WIDTH
    k = tl.load(_at(key, k_at, key_stride_k, key_channel), mask=is_key & has_key, other=0.0)  # (k, d)
    v = tl.load(_at(value, k_at, value_stride_k, value_channel), mask=is_key & has_value, other=0.0)  # (k, d')
    dk, dv = tl.zeros([KEYS, KEY_BLOCK], tl.float32), tl.zeros([KEYS, VALUE_BLOCK], tl.float32)
    for start in range(0, queries, QUERIES):
        q_at = start + tl.arange(0, QUERIES)
        is_query = (q_at < queries)[:, None]
        q = tl.load(_at(query, q_at, query_stride_q, key_channel), mask=is_query & has_key, other=0.0)  # (q, d)
        # Of queries that are not there it is 0: they reach no gradient.
        g = tl.load(_at(grad, q_at, grad_stride_q, value_channel), mask=is_query & has_value, other=0.0)  # (q, d')
        weights, sums = softmax(tl.dot(q, tl.trans(k), input_precision=PRECISION), scale, k_at < keys)
        weights = weights / sums[:, None]  # (q, k)
        dv += tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision=PRECISION)
        dweights = tl.dot(g, tl.trans(v), input_precision=PRECISION)  # (q, k)
        dscores = (weights * (dweights - tl.sum(weights * dweights, 1)[:, None]) * scale).to(q.dtype)
        dk += tl.dot(tl.trans(dscores), q, input_precision=PRECISION)
        dq = tl.dot(dscores, k, input_precision=PRECISION)  # (q, d)
        dq_at = _at(grad_query, q_at, HEADS * KEY_WIDTH, key_channel)
        tl.store(dq_at, dq.to(grad_query.dtype.element_ty), mask=is_query & has_key)
    dk_at = _at(grad_key + (image * keys * HEADS + head) * KEY_WIDTH, k_at, HEADS * KEY_WIDTH, key_channel)
    dv_at = _at(grad_value + (image * keys * HEADS + head) * VALUE_WIDTH, k_at, HEADS * VALUE_WIDTH, value_channel)
    tl.store(dk_at, dk.to(grad_key.dtype.element_ty), mask=is_key & has_key)
    tl.store(dv_at, dv.to(grad_value.dtype.element_ty), mask=is_key & has_value)
