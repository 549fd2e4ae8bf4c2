"""Attentions of the paper's design from the norm to the sum in one call, where nothing is recorded.

Axes: b batch, h height, w width, c channels, n heads, d width of a query and key head, d' of a value head, r positions
along each side of a cell.

Step by step an attention is a dozen operations. With one image, or in bfloat16, what Python and PyTorch do around them
takes a third of the time. Each function gives None where a step is not just what it was made as, or no kernel serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from scalablevit.kernels.selection import blocks_kernel
from scalablevit.recomputation import Norm, is_recorded, may_recompute, norm_of, product_dtype

Layer = tuple[Tensor, Tensor | None]  # weight and bias


class Reduction(NamedTuple):
    """What keys and values read instead of the normed map.

    Args:
        cells: The depthwise convolution over cells: weight (c, 1, r, r) and bias.
        scaling: The linear layer that scales channels: (n * d, c).
        norm: The norm behind it.
    """

    cells: Layer
    scaling: Layer
    norm: Norm


def attend_in_windows(
    norm: nn.LayerNorm,
    x: Tensor,
    projection: Layer,
    lim: tuple[Tensor, Tensor],
    to_out: Layer,
    *,
    heads: int,
    widths: Sequence[int],
    window_size: int,
    scale: float,
    residual: bool,
) -> Tensor | None:
    """Window attention of norm(x) with a depthwise LIM, plus x if wanted.

    Args:
        norm: Plain, over the channels.
        x: (b, h, w, c).
        projection: (2 * n * d + n * d', c): queries, keys, values.
        lim: (n * d', 1, 3, 3) and (n * d').
        to_out: (c, n * d').
        heads: n.
        widths: d and d'.
        window_size: In positions; a map that is smaller is one window.
        scale: Factor of the scores.
        residual: Whether x is added.

    Returns:
        (b, h, w, c).
    """
    key_width, value_width = (heads * width for width in widths)
    sizes = [(projection, (2 * key_width + value_width, x.shape[-1])), (to_out, (x.shape[-1], value_width))]
    parameters = norm_of(norm)
    if x.ndim != 4 or parameters is None or key_width % 16 or lim[0].shape != (value_width, 1, 3, 3):
        return None
    if lim[1].shape != lim[0].shape[:1]:
        return None
    window = min(window_size, x.shape[1]), min(window_size, x.shape[2])
    kernel = _kernel(x, parameters, sizes, [*parameters[:2], *lim], window_keys=window[0] * window[1])
    if kernel is None:
        return None
    out: Tensor = kernel.attend_in_windows(
        *(x, parameters, projection, lim, to_out),
        heads=heads,
        widths=widths,
        window=window,
        scale=scale,
        residual=residual,
    )
    return out


def attend_to_list(
    norm: nn.LayerNorm,
    x: Tensor,
    to_query: Layer,
    reduction: Reduction | None,
    to_key_value: Layer,
    to_out: Layer,
    *,
    heads: int,
    widths: Sequence[int],
    factor: int,
    scale: float,
    residual: bool,
) -> Tensor | None:
    """Attention of norm(x) to keys and values on a reduced map, plus x if wanted.

    Args:
        norm: Plain, over the channels.
        x: (b, h, w, c).
        to_query: (n * d, c).
        reduction: None where keys and values read the normed map.
        to_key_value: (n * d + n * d', n * d), or (..., c) without a reduction: keys, then values.
        to_out: (c, n * d').
        heads: n.
        widths: d and d'.
        factor: r; 1 without a reduction.
        scale: Factor of the scores.
        residual: Whether x is added.

    Returns:
        (b, h, w, c).
    """
    channels, (key_width, value_width) = x.shape[-1], (heads * width for width in widths)
    sizes = [(to_query, (key_width, channels)), (to_out, (channels, value_width))]
    parameters, small = norm_of(norm), []
    if x.ndim != 4 or parameters is None or min(x.shape[1:3]) < factor or (reduction is None) != (factor == 1):
        return None
    if reduction is None:
        sizes.append((to_key_value, (key_width + value_width, channels)))
    else:
        (cells, cell_bias), inner = reduction.cells, reduction.norm
        if cells.shape != (channels, 1, factor, factor) or cell_bias is None or cell_bias.shape != cells.shape[:1]:
            return None
        if inner.weight.dtype != inner.bias.dtype or not inner.weight.shape == inner.bias.shape == (key_width,):
            return None
        sizes.append((reduction.scaling, (key_width, channels)))
        sizes.append((to_key_value, (key_width + value_width, key_width)))
        small = [cells, cell_bias, inner.weight, inner.bias]
    keys = (x.shape[1] // factor) * (x.shape[2] // factor)
    kernel = _kernel(x, parameters, sizes, [*parameters[:2], *small], list_keys=keys)
    if kernel is None:
        return None
    out: Tensor = kernel.attend_to_list(
        *(x, parameters, to_query, reduction, to_key_value, to_out),
        heads=heads,
        widths=widths,
        factor=factor,
        scale=scale,
        residual=residual,
    )
    return out


def _kernel(x: Tensor, norm: Norm, sizes: list[tuple[Layer, tuple[int, int]]], small: list[Tensor], **keys: int) -> Any:
    """The module with kernels for such layers and other parameters, if nothing is recorded; or None."""
    if not norm.weight.shape == norm.bias.shape == x.shape[-1:] or not may_recompute(x) or not x.is_contiguous():
        return None  # the layers say what is wrong
    weights, biases = [], []
    for (weight, bias), size in sizes:
        if weight.shape != size or (bias is not None and bias.shape != size[:1]):
            return None
        weights.append(weight)
        if bias is not None:
            biases.append(bias)
    if is_recorded(x, *weights, *biases, *small):
        return None
    dtype = product_dtype(x, norm, [*weights, *biases, *small[2:]])
    if dtype is None or any(weight.dtype != weights[0].dtype for weight in weights):
        return None
    return blocks_kernel(x, dtype, [*weights, *biases, *small], **keys)
