"""How an attention reads from the residual stream and writes to it, in passes of our own.

Axes: b batch, h height, w width, c channels.

The norm in front of an attention, and the bias and the sum behind it, multiply nothing: their time is that of their
trips through memory. Where a native kernel serves, each is one trip.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from scalablevit.dropping import add_dropped, probability_of
from scalablevit.kernels.selection import products_kernel, rows_kernel
from scalablevit.layers import Linear, is_plain
from scalablevit.linear_in_graphs import linear_in_graph
from scalablevit.products import linear_by_kernel
from scalablevit.recomputation import are_plain, is_recorded, may_recompute, norm_of, product_dtype, without_autocast


def normed_linear(
    norm: nn.LayerNorm, x: Tensor, weight: Tensor, bias: Tensor | None, widths: list[int]
) -> tuple[Tensor, Tensor] | None:
    """What a linear layer gives for ``norm(x)``, in two parts of so many channels; None where no kernel does all that.

    Args:
        norm: Plain, over the channels.
        x: (b, h, w, c).
        weight: (f, c), of the layer.
        bias: (f).
        widths: Two, f together.

    Returns:
        (b, h, w, widths[0]) and (b, h, w, widths[1]).
    """
    parameters = norm_of(norm)
    if parameters is None or widths[0] % 32 or not may_recompute(x):
        return None
    if norm.weight.shape != x.shape[-1:] or weight.shape != (sum(widths), x.shape[-1]):
        return None  # the layers say what is wrong
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    if is_recorded(x, norm.weight, norm.bias, weight, bias):
        return None
    dtype = product_dtype(x, parameters, (weight, bias))
    kernel = None if dtype is None else products_kernel(x, dtype, weight, bias, norm.weight, norm.bias)
    if kernel is None or not x.is_contiguous():
        return None
    rows = x.view(-1, x.shape[-1])
    first, second = kernel.linear(rows, weight, bias, norm=parameters, first_columns=widths[0])
    return first.view(*x.shape[:-1], widths[0]), second.view(*x.shape[:-1], widths[1])


def add_projected(residual: Tensor | None, layer: Linear, dropout: nn.Dropout, values: Tensor) -> Tensor:
    """``residual + dropout(layer(values))``; without the sum where there is no residual stream.

    Args:
        residual: (b, h, w, c).
        layer: From c' to c channels.
        dropout: After the layer.
        values: (b, h, w, c').
    """
    if residual is not None and is_plain(layer) and is_plain(dropout, nn.Dropout):
        add = _add_in_graph if torch.compiler.is_compiling() else _add_natively
        out = add(residual, layer, dropout, values)
        if out is not None:
            return out
    projected: Tensor = layer(values)
    if is_plain(dropout, nn.Dropout):
        out = add_dropped(residual, projected, probability_of(dropout))
        if out is not None:
            return out
    projected = dropout(projected)
    return projected if residual is None else residual + projected


def _add_in_graph(residual: Tensor, layer: Linear, dropout: nn.Dropout, values: Tensor) -> Tensor | None:
    if probability_of(dropout) > 0.0:
        return None
    return linear_in_graph(values, layer.weight, layer.bias, residual)


def _add_natively(residual: Tensor, layer: Linear, dropout: nn.Dropout, values: Tensor) -> Tensor | None:
    if layer.bias is None or probability_of(dropout) > 0.0 or not may_recompute(values):
        return None
    if not are_plain((residual, values, layer.weight, layer.bias)):
        return None
    if is_recorded(residual, values, layer.weight, layer.bias):
        return linear_by_kernel(values, layer.weight, layer.bias, residual)
    if residual.is_neg():
        return None
    dtype = product_dtype(values, None, (layer.weight, layer.bias))
    if dtype is None or values.dtype != dtype:
        return None
    rows = values.reshape(-1, values.shape[-1])
    fits = layer.weight.shape == (residual.shape[-1], rows.shape[1]) and layer.bias.shape == residual.shape[-1:]
    products = products_kernel(rows, dtype, layer.weight, layer.bias) if fits and residual.dtype == dtype else None
    if products is not None and residual.is_contiguous() and rows.is_contiguous():
        stream = residual.view(-1, residual.shape[-1])
        return cast(Tensor, products.linear(rows, layer.weight, layer.bias, residual=stream)[0]).view(residual.shape)
    kernel = rows_kernel(residual, dtype)
    if kernel is None:
        return None
    with without_autocast(values):
        out = rows @ layer.weight.to(dtype).t()
        kernel.add_bias_residual_(out, layer.bias, residual.view(out.shape))
    return out.view(residual.shape)
