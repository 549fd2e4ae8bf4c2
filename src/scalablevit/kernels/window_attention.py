"""Launches the window attention kernels: grids, blocks, strides and precision.

Axes: b batch, h height, w width, c channels, n heads, d width of a query and key head, d' of a value head. The caller
has asked `triton_selection.takes_windows` whether the kernels take these maps. This module imports triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from scalablevit.kernels.window_kernels import backward_kernel, forward_kernel


def attend_in_windows(
    query_key: Tensor,
    value: Tensor,
    heads: int,
    window_size: int,
    scale: float,
    lim: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention inside windows, plus LIM's convolution of the value map if its parameters are given.

    Args:
        query_key: (b, h, w, 2 * n * d): queries and keys side by side, heads outer in each.
        value: (b, h, w, n * d'), heads outer.
        heads: Number of heads.
        window_size: Height and width of a window, in positions.
        scale: Factor of the scores.
        lim: Weight (n * d', 1, 3, 3) and bias (n * d') of LIM.

    Returns:
        (b, h, w, n * d'), contiguous.
    """
    query_key, value = _addressable(query_key), _addressable(value)
    out = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    weight, bias = (None, None) if lim is None else (lim[0].contiguous(), lim[1].contiguous())
    with torch.cuda.device_of(value):  # triton launches on the current device
        forward_kernel[_grid(value, heads, window_size)](
            query_key,
            value,
            weight,
            bias,
            out,
            *query_key.stride()[:3],
            *value.stride()[:3],
            *value.shape[1:3],
            scale,
            HAS_LIM=lim is not None,
            **constants(query_key, value, heads, window_size),
        )
    return out


def attend_in_windows_backward(
    grad: Tensor,
    query_key: Tensor,
    value: Tensor,
    heads: int,
    window_size: int,
    scale: float,
    lim_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of `attend_in_windows` with respect to its two maps, from that of its result (b, h, w, n * d').

    LIM's part in the gradient of the value map is there if its weight is given.
    """
    grad, query_key, value = (_addressable(x) for x in (grad, query_key, value))
    grad_query_key = torch.empty(query_key.shape, dtype=query_key.dtype, device=query_key.device)
    grad_value = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    with torch.cuda.device_of(value):
        backward_kernel[_grid(value, heads, window_size)](
            grad,
            query_key,
            value,
            None if lim_weight is None else lim_weight.contiguous(),
            grad_query_key,
            grad_value,
            *grad.stride()[:3],
            *query_key.stride()[:3],
            *value.stride()[:3],
            *value.shape[1:3],
            scale,
            HAS_LIM=lim_weight is not None,
            **constants(query_key, value, heads, window_size),
        )
    return grad_query_key, grad_value


def constants(query_key: Tensor, value: Tensor, heads: int, window_size: int) -> dict[str, Any]:
    """What a kernel is compiled for; `num_warps` is how many groups of 32 threads do one window."""
    _, height, width, value_channels = value.shape
    window_height, window_width = min(window_size, height), min(window_size, width)
    key_width, value_width = query_key.shape[-1] // (2 * heads), value_channels // heads
    tokens = block(window_height * window_width)
    return {
        "HEADS": heads,
        "KEY_WIDTH": key_width,
        "VALUE_WIDTH": value_width,
        "WINDOW_HEIGHT": window_height,
        "WINDOW_WIDTH": window_width,
        "TOKENS": tokens,
        "KEY_BLOCK": block(key_width),
        "VALUE_BLOCK": block(value_width),
        "PRECISION": float32_precision(),
        "enable_fp_fusion": True,  # what triton does by default, with a warning that it will not for ever
        "num_warps": 8 if tokens > 64 else 4,
    }


def float32_precision() -> str:
    """One TF32 product for two float32 numbers where PyTorch may do so, else three, which round as float32 does."""
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _grid(value: Tensor, heads: int, window_size: int) -> tuple[int]:
    """A program per window and head."""
    b, height, width, _ = value.shape
    down, across = triton.cdiv(height, window_size), triton.cdiv(width, window_size)
    return (b * down * across * heads,)


def block(size: int) -> int:
    """The next power of two; the tensor cores multiply no less than 16 rows or columns."""
    return max(16, triton.next_power_of_2(size))


def _addressable(x: Tensor) -> Tensor:
    """The map itself, unless its channels lie apart (a gradient of a sum is one number, read again and again), or its
    rows so far that 32 bits do not count the elements between them.
    """
    last = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    return x if x.stride(-1) == 1 and last < 2**31 else x.contiguous()
