"""Window attention as two Triton kernels, forward and backward, on the map as it lies in memory.

Axes: b batch, h height, w width, n heads, t tokens of a window (its positions, row by row), d width of a query and key
head, d' width of a value head. One program does one head of one window: it finds queries, keys and values where they
stand in the channels-last maps, so that nothing is partitioned or merged, holds all scores of the window at once, and
so needs no running softmax. Window tokens and head widths are filled up to powers of two with masked zeros: 49 to 64.

The forward can add LIM, the depthwise 3x3 convolution of the value map, on the way out; its neighbours are read from
the map, because they may belong to other windows. The backward computes the scores again from queries and keys: no
score ever reaches memory. Products take float32 inputs as three TF32 products (or as one where PyTorch is allowed to);
scores, softmax and sums are float32.

This module imports triton: import it only where `selection` says that a kernel runs.
"""

import triton
import triton.language as tl

# Triton reads the annotations, so that they are not postponed: `int` is 32 bits, and strides, which are tensors without
# dimensions, have as many as their values need.


@triton.jit
def _tokens_of_window(
    window: tl.tensor,
    height: int,
    width: int,
    WINDOW_HEIGHT: tl.constexpr,
    WINDOW_WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The image, and for every token its row and column in the map and whether it is there: (), (t), (t), (t)."""
    across = tl.cdiv(width, WINDOW_WIDTH)
    per_image = tl.cdiv(height, WINDOW_HEIGHT) * across
    token = tl.arange(0, TOKENS)
    row = (window % per_image) // across * WINDOW_HEIGHT + token // WINDOW_WIDTH
    column = (window % per_image) % across * WINDOW_WIDTH + token % WINDOW_WIDTH
    is_real = (token < WINDOW_HEIGHT * WINDOW_WIDTH) & (row < height) & (column < width)
    return (window // per_image).to(tl.int64), row, column, is_real  # a batch may pass 2**31 elements, an image not


@triton.jit
def _at(
    start: tl.tensor,
    image: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    stride_b: tl.tensor,
    stride_h: tl.tensor,
    stride_w: tl.tensor,
    channel: tl.tensor,
) -> tl.tensor:
    """Where the tokens' channels lie in a map: (t, d) pointers."""
    return start + image * stride_b + (row * stride_h + column * stride_w)[:, None] + channel[None, :]


@triton.jit
def _at_contiguous(
    start: tl.tensor,
    image: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    height: int,
    width: int,
    channels: int,
    channel: tl.tensor,
) -> tl.tensor:
    """The same in a map without gaps, as results are."""
    return _at(start, image, row, column, height * width * channels, width * channels, channels, channel)


@triton.jit
def _add_lim(
    total: tl.tensor,
    start: tl.tensor,
    image: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    stride_b: tl.tensor,
    stride_h: tl.tensor,
    stride_w: tl.tensor,
    channel: tl.tensor,
    has_value: tl.tensor,
    lim_weight: tl.tensor,
    has_channel: tl.tensor,
    height: int,
    width: int,
    FLIP: tl.constexpr,
) -> tl.tensor:
    """Adds the depthwise 3x3 convolution of a map, zero outside its border, to `total` (t, d').

    With the weight flipped it is the gradient: what position x gave to x + 1 comes back from there.
    """
    for down in range(3):  # not unrolled: nine maps in flight would not fit in registers
        for right in tl.static_range(3):
            there_row, there_column = row + (down - 1), column + (right - 1)
            is_inside = (there_row >= 0) & (there_row < height) & (there_column >= 0) & (there_column < width)
            there = tl.load(
                _at(start, image, there_row, there_column, stride_b, stride_h, stride_w, channel),
                mask=has_value & is_inside[:, None],
                other=0.0,
            )
            tap = (2 - down) * 3 + (2 - right) if FLIP else down * 3 + right
            factor = tl.load(lim_weight + channel * 9 + tap, mask=has_channel, other=0.0)
            total += there.to(tl.float32) * factor.to(tl.float32)[None, :]
    return total


@triton.jit
def softmax(scores: tl.tensor, scale: float, is_real: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Weights over the keys that are there, not yet divided by their sums, and the sums: (t, t) and (t)."""
    scores = tl.where(is_real[None, :], scores * (scale * 1.4426950408889634), float("-inf"))  # 2**x for e**x
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return weights, tl.sum(weights, 1)


@triton.jit(do_not_specialize=["height", "width"])
def forward_kernel(
    query_key: tl.tensor,
    value: tl.tensor,
    lim_weight: tl.tensor,
    lim_bias: tl.tensor,
    out: tl.tensor,
    query_key_stride_b: tl.tensor,
    query_key_stride_h: tl.tensor,
    query_key_stride_w: tl.tensor,
    value_stride_b: tl.tensor,
    value_stride_h: tl.tensor,
    value_stride_w: tl.tensor,
    height: int,
    width: int,
    scale: float,
    HEADS: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    WINDOW_HEIGHT: tl.constexpr,
    WINDOW_WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_LIM: tl.constexpr,
) -> None:
    # Heads first: programs that run together share the lines of memory that adjacent heads lie in.
    head = tl.program_id(0) % HEADS
    window = tl.program_id(0) // HEADS
    image, row, column, is_real = _tokens_of_window(window, height, width, WINDOW_HEIGHT, WINDOW_WIDTH, TOKENS)

    key_in_head, value_in_head = tl.arange(0, KEY_BLOCK), tl.arange(0, VALUE_BLOCK)
    key_channel, value_channel = head * KEY_WIDTH + key_in_head, head * VALUE_WIDTH + value_in_head
    has_key = is_real[:, None] & (key_in_head < KEY_WIDTH)[None, :]
    has_value = is_real[:, None] & (value_in_head < VALUE_WIDTH)[None, :]
    query_at = _at(
        query_key, image, row, column, query_key_stride_b, query_key_stride_h, query_key_stride_w, key_channel
    )
    value_at = _at(value, image, row, column, value_stride_b, value_stride_h, value_stride_w, value_channel)
    q = tl.load(query_at, mask=has_key, other=0.0)  # (t, d)
    k = tl.load(query_at + HEADS * KEY_WIDTH, mask=has_key, other=0.0)  # (t, d)
    v = tl.load(value_at, mask=has_value, other=0.0)  # (t, d')

    weights, sums = softmax(tl.dot(q, tl.trans(k), input_precision=PRECISION), scale, is_real)  # (t, t)
    result = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION) / sums[:, None]  # (t, d')
    if HAS_LIM:
        bias = tl.load(lim_bias + value_channel, mask=value_in_head < VALUE_WIDTH, other=0.0).to(tl.float32)
        result += _add_lim(
            tl.zeros([TOKENS, VALUE_BLOCK], tl.float32) + bias[None, :],
            value,
            image,
            row,
            column,
            value_stride_b,
            value_stride_h,
            value_stride_w,
            value_channel,
            has_value,
            lim_weight,
            value_in_head < VALUE_WIDTH,
            height,
            width,
            FLIP=False,
        )
    out_at = _at_contiguous(out, image, row, column, height, width, HEADS * VALUE_WIDTH, value_channel)
    tl.store(out_at, result.to(out.dtype.element_ty), mask=has_value)


@triton.jit(do_not_specialize=["height", "width"])
def backward_kernel(
    grad: tl.tensor,
    query_key: tl.tensor,
    value: tl.tensor,
    lim_weight: tl.tensor,
    grad_query_key: tl.tensor,
    grad_value: tl.tensor,
    grad_stride_b: tl.tensor,
    grad_stride_h: tl.tensor,
    grad_stride_w: tl.tensor,
    query_key_stride_b: tl.tensor,
    query_key_stride_h: tl.tensor,
    query_key_stride_w: tl.tensor,
    value_stride_b: tl.tensor,
    value_stride_h: tl.tensor,
    value_stride_w: tl.tensor,
    height: int,
    width: int,
    scale: float,
    HEADS: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    WINDOW_HEIGHT: tl.constexpr,
    WINDOW_WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_LIM: tl.constexpr,
) -> None:
    head = tl.program_id(0) % HEADS
    window = tl.program_id(0) // HEADS
    image, row, column, is_real = _tokens_of_window(window, height, width, WINDOW_HEIGHT, WINDOW_WIDTH, TOKENS)

    key_in_head, value_in_head = tl.arange(0, KEY_BLOCK), tl.arange(0, VALUE_BLOCK)
    key_channel, value_channel = head * KEY_WIDTH + key_in_head, head * VALUE_WIDTH + value_in_head
    has_key = is_real[:, None] & (key_in_head < KEY_WIDTH)[None, :]
    has_value = is_real[:, None] & (value_in_head < VALUE_WIDTH)[None, :]
    query_at = _at(
        query_key, image, row, column, query_key_stride_b, query_key_stride_h, query_key_stride_w, key_channel
    )
    value_at = _at(value, image, row, column, value_stride_b, value_stride_h, value_stride_w, value_channel)
    grad_at = _at(grad, image, row, column, grad_stride_b, grad_stride_h, grad_stride_w, value_channel)
    q = tl.load(query_at, mask=has_key, other=0.0)  # (t, d)
    k = tl.load(query_at + HEADS * KEY_WIDTH, mask=has_key, other=0.0)  # (t, d)
    v = tl.load(value_at, mask=has_value, other=0.0)  # (t, d')
    # Of queries that are not there it is 0: they reach no gradient.
    g = tl.load(grad_at, mask=has_value, other=0.0).to(v.dtype)  # (t, d')

    weights, sums = softmax(tl.dot(q, tl.trans(k), input_precision=PRECISION), scale, is_real)
    weights = weights / sums[:, None]  # (t, t)
    dv = tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision=PRECISION)  # (t, d')
    if HAS_LIM:
        dv += _add_lim(
            tl.zeros([TOKENS, VALUE_BLOCK], tl.float32),
            grad,
            image,
            row,
            column,
            grad_stride_b,
            grad_stride_h,
            grad_stride_w,
            value_channel,
            has_value,
            lim_weight,
            value_in_head < VALUE_WIDTH,
            height,
            width,
            FLIP=True,
        )
    dv_at = _at_contiguous(grad_value, image, row, column, height, width, HEADS * VALUE_WIDTH, value_channel)
    tl.store(dv_at, dv.to(grad_value.dtype.element_ty), mask=has_value)

    dweights = tl.dot(g, tl.trans(v), input_precision=PRECISION)  # (t, t)
    dscores = weights * (dweights - tl.sum(weights * dweights, 1)[:, None]) * scale
    dscores = dscores.to(q.dtype)
    dq = tl.dot(dscores, k, input_precision=PRECISION)  # (t, d)
    dk = tl.dot(tl.trans(dscores), q, input_precision=PRECISION)  # (t, d)
    dq_at = _at_contiguous(grad_query_key, image, row, column, height, width, 2 * HEADS * KEY_WIDTH, key_channel)
    tl.store(dq_at, dq.to(grad_query_key.dtype.element_ty), mask=has_key)
    tl.store(dq_at + HEADS * KEY_WIDTH, dk.to(grad_query_key.dtype.element_ty), mask=has_key)
