"""Attention inside the windows of a map: partition, padding, masks, and the operator behind them.

Axes: b batch, h height, w width, c channels, n heads, q queries, k keys, d width of a head. A map is cut into a grid of
windows from its top left corner. Windows that stick out at the bottom and right are padded, and the padded positions
masked as keys, so that they have no influence on any result.

There are two bodies, which agree. `_attend_in_windows` runs on real sizes: it shrinks the window to the map, and pads
and masks only where that is needed. `_attend_in_windows_traced` has no branch on a size, for graphs that serve every
size. `torch.compile` sees neither: it records the operator ``scalablevit::window_attention``. That runs
`_attend_in_windows`, or a kernel where `scalablevit.kernels` has one; eager code then calls it, too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scalablevit.dot_product import attend, is_exporting, laid_out, merge_heads, split_heads
from scalablevit.kernels.recording import call_kernel
from scalablevit.kernels.selection import windows_kernel


def window_attention(
    query_key: Tensor, value: Tensor, heads: int, window_size: int, scale: float, dropout: float = 0.0
) -> Tensor:
    """Multi-head attention of every position to the positions of its own window.

    Args:
        query_key: (b, h, w, 2 * heads * d): queries and keys side by side in the channels, heads outer in each.
        value: (b, h, w, heads * d'), heads outer.
        heads: Number of heads.
        window_size: Height and width of a window, in positions. A map that is smaller has one window of its own size.
        scale: Factor of the scores.
        dropout: Probability that an attention weight is zeroed; 0 outside training.

    Returns:
        (b, h, w, heads * d').
    """
    if torch.jit.is_scripting():
        return _attend_in_windows_traced(query_key, value, heads, window_size, scale, dropout)
    else:
        body = _attend_in_windows
        if torch.jit.is_tracing() or is_exporting():
            body = _attend_in_windows_traced
        elif torch.compiler.is_compiling():
            if dropout == 0.0:
                return torch.ops.scalablevit.window_attention(query_key, value, heads, window_size, scale)
            body = _attend_in_windows_traced  # the operator draws no random numbers
        elif dropout == 0.0:
            kernel = windows_kernel(query_key, value, heads, window_size)
            if kernel is not None:
                return _attend_by(kernel, query_key, value, heads, window_size, scale)
        return body(query_key, value, heads, window_size, scale, dropout)


def _attend_by(kernel: Any, query_key: Tensor, value: Tensor, heads: int, window_size: int, scale: float) -> Tensor:
    arguments: Any = (heads, window_size, scale)
    return call_kernel(
        (query_key, value),
        forward=lambda *maps: kernel.attend_in_windows(*maps, *arguments),
        backward=lambda *maps: kernel.attend_in_windows_backward(*maps, *arguments),
        plain=lambda query_key, value: _attend_in_windows(query_key, value, heads, window_size, scale, 0.0),
        operator=lambda *maps: _operator(*maps, *arguments),
    )


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
    query_key: Tensor, value: Tensor, heads: int, window_size: int, scale: float, dropout: float
) -> Tensor:
    _, h, w, _ = value.shape
    window_height, window_width = min(window_size, h), min(window_size, w)
    missing_height, missing_width = -h % window_height, -w % window_width
    mask = None
    if missing_height or missing_width:
        padding = (0, 0, 0, missing_width, 0, missing_height)
        query_key, value = F.pad(query_key, padding), F.pad(value, padding)
        mask = _padding_mask(value, h, w, window_height, window_width)
    query_key = partition(query_key, window_height, window_width)
    value = partition(value, window_height, window_width)
    out = _attend(query_key, value, heads, scale, dropout, mask)
    out = merge(out, window_height, window_width, h + missing_height, w + missing_width)
    return out[:, :h, :w]


def _attend_in_windows_traced(
    query_key: Tensor, value: Tensor, heads: int, window_size: int, scale: float, dropout: float
) -> Tensor:
    b, h, w, _ = value.shape
    padded_height = (h + window_size - 1) // window_size * window_size
    padded_width = (w + window_size - 1) // window_size * window_size
    padding = [0, 0, 0, padded_width - w, 0, padded_height - h]
    real = torch.zeros([b, h, w, 1], dtype=value.dtype, device=value.device)
    mask = F.pad(real, padding, value=float("-inf"))
    mask = partition(mask, window_size, window_size).transpose(1, 2).unsqueeze(1)  # (b * windows, 1, 1, k)
    query, key = _heads_in_windows(F.pad(query_key, padding), 2 * heads, window_size).split(heads, dim=1)
    value = _heads_in_windows(F.pad(value, padding), heads, window_size)
    out = attend(query, key, value, scale, dropout, mask)
    out = _map_of_heads(out, window_size, padded_height, padded_width)
    return F.pad(out, [0, 0, 0, w - padded_width, 0, h - padded_height])  # a negative padding crops


def _heads_in_windows(x: Tensor, heads: int, window_size: int) -> Tensor:
    """(b, h, w, n * d) to (b * windows, n, q, d): `partition` and `split_heads` in one trip through memory."""
    w, c = x.shape[2], x.shape[3]
    x = x.reshape(-1, window_size, w // window_size, window_size, heads, c // heads)
    return laid_out(x.permute(0, 2, 4, 1, 3, 5)).reshape(-1, heads, window_size * window_size, c // heads)


def _map_of_heads(x: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """The inverse of `_heads_in_windows`."""
    heads, d = x.shape[1], x.shape[3]
    x = x.reshape(-1, width // window_size, heads, window_size, window_size, d)
    return laid_out(x.permute(0, 3, 1, 4, 2, 5)).reshape(-1, height, width, heads * d)


def _padding_mask(padded: Tensor, height: int, width: int, window_height: int, window_width: int) -> Tensor:
    """0 for the real and -inf for the padded keys of every window: (b * windows, 1, 1, k)."""
    b, padded_height, padded_width, _ = padded.shape
    mask = padded.new_full((1, padded_height, padded_width, 1), float("-inf"))
    mask[:, :height, :width] = 0.0
    return partition(mask, window_height, window_width).transpose(1, 2).unsqueeze(1).repeat(b, 1, 1, 1)


def _attend(query_key: Tensor, value: Tensor, heads: int, scale: float, dropout: float, mask: Tensor | None) -> Tensor:
    """(windows, q, n * 2 * d) and (windows, q, n * d') to (windows, q, n * d')."""
    query, key = query_key.split(query_key.shape[-1] // 2, dim=-1)
    query, key, value = split_heads(query, heads), split_heads(key, heads), split_heads(value, heads)
    return merge_heads(attend(query, key, value, scale, dropout, mask))


@torch.library.custom_op("scalablevit::window_attention", mutates_args=())
def _operator(query_key: Tensor, value: Tensor, heads: int, window_size: int, scale: float) -> Tensor:
    if (kernel := windows_kernel(query_key, value, heads, window_size)) is not None:
        return kernel.attend_in_windows(query_key, value, heads, window_size, scale)
    return _attend_in_windows(query_key, value, heads, window_size, scale, 0.0).contiguous()


@_operator.register_fake
def _operator_fake(query_key: Tensor, value: Tensor, heads: int, window_size: int, scale: float) -> Tensor:
    return value.new_empty(value.shape)


@torch.library.custom_op("scalablevit::window_attention_backward", mutates_args=())
def _backward_operator(
    grad: Tensor, query_key: Tensor, value: Tensor, heads: int, window_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    if (kernel := windows_kernel(query_key, value, heads, window_size)) is not None:
        return kernel.attend_in_windows_backward(grad, query_key, value, heads, window_size, scale)

    # The forward is computed again: it costs little beside the linear layers around it, and the input is all that is
    # kept. Inside an operator autograd is off; torch.func brings its own.
    def forward(query_key: Tensor, value: Tensor) -> Tensor:
        return _attend_in_windows(query_key, value, heads, window_size, scale, 0.0)

    pullback = torch.func.vjp(forward, query_key, value)[1]
    grad_query_key, grad_value = pullback(grad)
    return grad_query_key.contiguous(), grad_value.contiguous()


@_backward_operator.register_fake
def _backward_operator_fake(
    grad: Tensor, query_key: Tensor, value: Tensor, heads: int, window_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    return query_key.new_empty(query_key.shape), value.new_empty(value.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query_key, value, *ctx.arguments = inputs
    ctx.save_for_backward(query_key, value)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward_operator(grad, *ctx.saved_tensors, *ctx.arguments), None, None, None


_operator.register_autograd(_backward, setup_context=_save_for_backward)
