"""Attention inside the windows of a map: partition, padding, masks, and the operator behind them.

Axes: b batch, h height, w width, c channels, n heads, q queries, k keys, d width of a head. A map is cut into a grid of
windows from its top left corner. Windows that stick out at the bottom and right are padded, and the padded positions
masked as keys, so that they have no influence on any result.

There are two bodies, which agree. `_attend_in_windows` runs on real sizes: it shrinks the window to the map, and pads
and masks only where that is needed. `_attend_in_windows_traced` has no branch on a size, for graphs that serve every
size. `torch.compile` sees neither: it records the operator ``scalablevit::window_attention``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scalablevit.dot_product import attend, laid_out, merge_heads, split_heads


def window_attention(
    qkv: Tensor, heads: int, key_width: int, value_width: int, window_size: int, scale: float, dropout: float = 0.0
) -> Tensor:
    """Multi-head attention of every position to the positions of its own window.

    Args:
        qkv: (b, h, w, heads * (2 * key_width + value_width)): queries, keys and values side by side in the channels,
            in each of them heads outer and head width inner.
        heads: Number of heads.
        key_width: Width of a query and key head.
        value_width: Width of a value head.
        window_size: Height and width of a window, in positions. A map that is smaller has one window of its own size.
        scale: Factor of the scores.
        dropout: Probability that an attention weight is zeroed; 0 outside training.

    Returns:
        (b, h, w, heads * value_width).
    """
    if torch.jit.is_scripting():
        return _attend_in_windows_traced(qkv, heads, key_width, value_width, window_size, scale, dropout)
    else:
        body = _attend_in_windows
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            body = _attend_in_windows_traced
        elif torch.compiler.is_compiling():
            if dropout == 0.0:
                return torch.ops.scalablevit.window_attention(qkv, heads, key_width, value_width, window_size, scale)
            body = _attend_in_windows_traced  # the operator draws no random numbers
        return body(qkv, heads, key_width, value_width, window_size, scale, dropout)


def partition(x: Tensor, window_height: int, window_width: int) -> Tensor:
    """(b, h, w, c) to (b * windows, window_height * window_width, c); h and w are multiples of the window's."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window_height, window_height, w // window_width, window_width, c)
    return laid_out(x.transpose(2, 3)).reshape(-1, window_height * window_width, c)


def merge(x: Tensor, window_height: int, window_width: int, height: int, width: int) -> Tensor:
    """The inverse of `partition`: (b * windows, window_height * window_width, c) to (b, height, width, c)."""
    c = x.shape[-1]
    x = x.reshape(-1, height // window_height, width // window_width, window_height, window_width, c)
    return laid_out(x.transpose(2, 3)).reshape(-1, height, width, c)


def _attend_in_windows(
    qkv: Tensor, heads: int, key_width: int, value_width: int, window_size: int, scale: float, dropout: float
) -> Tensor:
    _, h, w, _ = qkv.shape
    window_height, window_width = min(window_size, h), min(window_size, w)
    missing_height, missing_width = -h % window_height, -w % window_width
    mask = None
    if missing_height or missing_width:
        qkv = F.pad(qkv, (0, 0, 0, missing_width, 0, missing_height))
        mask = _padding_mask(qkv, h, w, window_height, window_width)
    out = _attend(partition(qkv, window_height, window_width), heads, key_width, value_width, scale, dropout, mask)
    out = merge(out, window_height, window_width, h + missing_height, w + missing_width)
    return out[:, :h, :w]


def _attend_in_windows_traced(
    qkv: Tensor, heads: int, key_width: int, value_width: int, window_size: int, scale: float, dropout: float
) -> Tensor:
    b, h, w, _ = qkv.shape
    padded_height = (h + window_size - 1) // window_size * window_size
    padded_width = (w + window_size - 1) // window_size * window_size
    qkv = F.pad(qkv, [0, 0, 0, padded_width - w, 0, padded_height - h])
    real = torch.zeros([b, h, w, 1], dtype=qkv.dtype, device=qkv.device)
    mask = F.pad(real, [0, 0, 0, padded_width - w, 0, padded_height - h], value=float("-inf"))
    mask = partition(mask, window_size, window_size).transpose(1, 2).unsqueeze(1)  # (b * windows, 1, 1, k)
    out = _attend(partition(qkv, window_size, window_size), heads, key_width, value_width, scale, dropout, mask)
    out = merge(out, window_size, window_size, padded_height, padded_width)
    return F.pad(out, [0, 0, 0, w - padded_width, 0, h - padded_height])  # a negative padding crops


def _padding_mask(padded: Tensor, height: int, width: int, window_height: int, window_width: int) -> Tensor:
    """0 for the real and -inf for the padded keys of every window: (b * windows, 1, 1, k)."""
    b, padded_height, padded_width, _ = padded.shape
    mask = padded.new_full((1, padded_height, padded_width, 1), float("-inf"))
    mask[:, :height, :width] = 0.0
    return partition(mask, window_height, window_width).transpose(1, 2).unsqueeze(1).repeat(b, 1, 1, 1)


def _attend(
    windows: Tensor,
    heads: int,
    key_width: int,
    value_width: int,
    scale: float,
    dropout: float,
    mask: Tensor | None,
) -> Tensor:
    """(windows, q, n * (2 * d + d')) to (windows, q, n * d')."""
    widths = [heads * key_width, heads * key_width, heads * value_width]
    query, key, value = windows.split(widths, dim=-1)
    query, key, value = split_heads(query, heads), split_heads(key, heads), split_heads(value, heads)
    return merge_heads(attend(query, key, value, scale=scale, dropout=dropout, mask=mask))


@torch.library.custom_op("scalablevit::window_attention", mutates_args=())
def _operator(qkv: Tensor, heads: int, key_width: int, value_width: int, window_size: int, scale: float) -> Tensor:
    return _attend_in_windows(qkv, heads, key_width, value_width, window_size, scale, 0.0).contiguous()


@_operator.register_fake
def _operator_fake(qkv: Tensor, heads: int, key_width: int, value_width: int, window_size: int, scale: float) -> Tensor:
    b, h, w, _ = qkv.shape
    return qkv.new_empty((b, h, w, heads * value_width))


@torch.library.custom_op("scalablevit::window_attention_backward", mutates_args=())
def _backward_operator(
    grad: Tensor, qkv: Tensor, heads: int, key_width: int, value_width: int, window_size: int, scale: float
) -> Tensor:
    # The forward is computed again: it costs little beside the linear layers around it, and the input is all that is
    # kept. Inside an operator autograd is off; torch.func brings its own.
    def forward(qkv: Tensor) -> Tensor:
        return _attend_in_windows(qkv, heads, key_width, value_width, window_size, scale, 0.0)

    pullback = torch.func.vjp(forward, qkv)[1]
    return pullback(grad)[0].contiguous()


@_backward_operator.register_fake
def _backward_operator_fake(
    grad: Tensor, qkv: Tensor, heads: int, key_width: int, value_width: int, window_size: int, scale: float
) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, *ctx.arguments = inputs
    ctx.save_for_backward(qkv)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (qkv,) = ctx.saved_tensors
    return _backward_operator(grad, qkv, *ctx.arguments), None, None, None, None, None


_operator.register_autograd(_backward, setup_context=_save_for_backward)
