"""Calls the C++ kernels for whole attentions of the paper's design (`blocks.h`), from the norm to the sum.

Axes: b batch, h height, w width, c channels, n heads, d width of a query and key head, d' of a value head, r positions
along each side of a cell. Tensors are on a CPU, of types and sizes that `blocks` has looked at.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from scalablevit.kernels.cpu.attention import call
from scalablevit.kernels.cpu.rows import as_float

Layer = tuple[Tensor, Tensor | None]  # weight and bias
NormParameters = tuple[Tensor, Tensor, float]  # weight (c), bias (c), eps


def attend_in_windows(
    x: Tensor,
    norm: NormParameters,
    projection: Layer,
    lim: tuple[Tensor, Tensor],
    to_out: Layer,
    *,
    heads: int,
    widths: Sequence[int],
    window: tuple[int, int],
    scale: float,
    residual: bool,
) -> Tensor:
    """``to_out(attention(projection(norm(x))) + lim)``, plus x if wanted.

    Args:
        x: (b, h, w, c), contiguous.
        norm: The norm in front.
        projection: (2 * n * d + n * d', c), contiguous, of the type of x or float32; queries, keys, values.
        lim: Weight (n * d', 1, 3, 3) and bias.
        to_out: (c, n * d'), of the type of the projection.
        heads: n.
        widths: d, for which 2 * n * d is a multiple of 32, and d'.
        window: Height and width.
        scale: Factor of the scores.
        residual: Whether x is added.

    Returns:
        (b, h, w, c), contiguous.
    """
    weight, out = projection[0], torch.empty_like(x)
    positions = x.numel() // x.shape[-1]
    workspace = _workspace(x, 9 * heads * widths[1], positions * heads * 2 * (widths[0] + widths[1]))
    small = *norm[:2], projection[1], *lim, to_out[1]
    norm_weight, norm_bias, projection_bias, lim_weight, lim_bias, out_bias = _as_floats(small)
    tensors = (
        x,
        norm_weight,
        norm_bias,
        weight,
        projection_bias,
        lim_weight,
        lim_bias,
        to_out[0],
        out_bias,
        workspace,
        out,
    )
    block = _block(tensors, (*x.shape, heads, *widths, *window, residual))
    call("attend_in_windows_block", (x.dtype, weight.dtype), block, ctypes.c_float(norm[2]), ctypes.c_float(scale))
    return out


def attend_to_list(
    x: Tensor,
    norm: NormParameters,
    to_query: Layer,
    reduction: tuple[Layer, Layer, NormParameters] | None,
    to_key_value: Layer,
    to_out: Layer,
    *,
    heads: int,
    widths: Sequence[int],
    factor: int,
    scale: float,
    residual: bool,
) -> Tensor:
    """``to_out(attention(to_query(norm(x)), *to_key_value(reduced)))``, plus x if wanted.

    Args:
        x: (b, h, w, c), contiguous.
        norm: The norm in front.
        to_query: (n * d, c), contiguous, of the type of x or float32.
        reduction: What gives ``reduced = gelu(norm(scaling(cells)))``: the depthwise convolution, (c, 1, r, r), the
            layer (n * d, c) of the type of `to_query`, and the norm; None where it is the norm of x.
        to_key_value: (n * d + n * d', n * d or c), likewise; keys, then values.
        to_out: (c, n * d'), likewise.
        heads: n.
        widths: d and d'.
        factor: r; the map is no smaller along either side.
        scale: Factor of the scores.
        residual: Whether x is added.

    Returns:
        (b, h, w, c), contiguous.
    """
    weight, out = to_query[0], torch.empty_like(x)
    b, h, w, c = x.shape
    cells, query_width, value_width = b * (h // factor) * (w // factor), heads * widths[0], heads * widths[1]
    reduced = cells * (c + query_width) if reduction is not None else 0
    numbers = (b * h * w + cells) * (query_width + value_width) + reduced
    workspace = _workspace(x, factor * factor * c, numbers)
    (cell, cell_bias), (scaling, scaling_bias), inner = reduction or ((None, None), (None, None), (None, None, 0.0))
    small = *norm[:2], to_query[1], cell, cell_bias, scaling_bias, *inner[:2], to_key_value[1], to_out[1]
    before, before_bias, query_bias, cell, cell_bias, scaling_bias, *rest = _as_floats(small)
    inner_weight, inner_bias, key_value_bias, out_bias = rest
    tensors = (
        *(x, before, before_bias, weight, query_bias, cell, cell_bias, scaling, scaling_bias, inner_weight, inner_bias),
        *(to_key_value[0], key_value_bias, to_out[0], out_bias, workspace, out),
    )
    block = _block(tensors, (b, h, w, c, heads, *widths, factor, residual))
    factors = (ctypes.c_float(one) for one in (norm[2], inner[2], scale))
    call("attend_to_list_block", (x.dtype, weight.dtype), block, *factors)
    return out


def _as_floats(parameters: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if parameter is None else as_float(parameter) for parameter in parameters]


def _workspace(x: Tensor, floats: int, numbers: int) -> Tensor:
    """Room for so many numbers of float32, and of the type of x."""
    return x.new_empty(floats * 4 // x.itemsize + numbers)


def _block(tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    addresses = [0 if x is None else x.data_ptr() for x in tensors]
    return (ctypes.c_int64 * (len(tensors) + len(sizes)))(*addresses, *sizes)
