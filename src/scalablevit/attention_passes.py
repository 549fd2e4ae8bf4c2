"""An attention step by step, and its backward pass where the forward pass was one call.

Axes: b batch, h height, w width, c channels. Maps are (b, h, w, c). What the forward pass keeps is the map, and what
the kernel left in its room: queries, keys, values, what was attended to. Norms are computed again, and the layer in
front of the second norm of a reduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scalablevit.cell_convolutions import cell_convolution_gradients
from scalablevit.cells import cut_into_cells, fill_up_to_one_cell, map_of_cells
from scalablevit.convolutions import convolve
from scalablevit.dot_product import attend_fused, merge_heads, split_heads
from scalablevit.interactive_windows import attend_and_convolve, lim_parameter_gradients
from scalablevit.kernels.cpu import convolution
from scalablevit.kernels.cpu.blocks import kept_of_list, kept_of_windows
from scalablevit.kernels.parts import Layer, ListParts, Reduction, WindowParts
from scalablevit.kernels.selection import lists_kernel, windows_kernel
from scalablevit.layers import linear
from scalablevit.products import product, sum_of_rows, weight_gradient
from scalablevit.recomputation import norm_gradients, normalise
from scalablevit.windows import window_attention

Gradients = list[Tensor | None]


def run_by_steps(x: Tensor, parts: WindowParts | ListParts, dtype: torch.dtype, *, plain: bool = False) -> Tensor:
    """The attention of a map, without the sum, in products of `dtype`.

    Args:
        x: The map.
        parts: What the attention is made of.
        dtype: Of the products.
        plain: Whether by operations alone that autograd can differentiate twice; else by our operators.
    """
    read = normalise(x, *parts.norm)[0].to(dtype)
    if not plain:
        return _apply(_attend(read, parts, plain=False), parts.to_out)
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused attention has no second derivative
        return _apply(_attend(read, parts, plain=True), parts.to_out)


def gradients(
    grad: Tensor, x: Tensor, room: Tensor, parts: WindowParts | ListParts, *, residual: bool, needs_x: bool
) -> Gradients | None:
    """Those for the map and for all of the tensors of its parts; None where no kernel takes what was kept.

    Args:
        grad: Of the result, (b, h, w, c), contiguous.
        x: The map.
        room: What the forward pass left behind.
        parts: What the attention is made of.
        residual: Whether the map was added.
        needs_x: Whether the gradient for the map is wanted.
    """
    if isinstance(parts, WindowParts):
        found = _window_gradients(grad, x, room, parts)
    else:
        found = _list_gradients(grad, x, room, parts)
    if found is None:
        return None
    of_reads, normed_by, of_layers = found
    needs, stream = (needs_x, True, True), grad if residual else None
    of_norm = norm_gradients(of_reads, x, *normed_by, parts.norm.weight, parts.norm.bias, needs, residual=stream)
    return [*of_norm, *of_layers]


# For the normed map, to be added up; what it was normalised by; and for the tensors of all parts but the first norm.
_BeforeNorm = tuple[list[Tensor], tuple[Tensor, Tensor], Gradients]


def _window_gradients(grad: Tensor, x: Tensor, room: Tensor, parts: WindowParts) -> _BeforeNorm | None:
    query_key, value, attended = kept_of_windows(room, x, parts)
    settings = parts.heads, parts.window_size
    kernel = windows_kernel(query_key, value, *settings)
    if kernel is None:
        return None
    (of_attended,), of_out = _layer_gradients([grad], attended, parts.to_out)
    lim, is_dense = parts.lim.weight, parts.is_dense()
    maps = kernel.attend_in_windows_backward(
        of_attended, query_key, value, *settings, parts.scale, None if is_dense else lim
    )
    if is_dense:
        of_value, *of_parameters = convolution.gradients(of_attended, value, lim, (True, True, True))
        maps[1].add_(cast(Tensor, of_value))
        del of_value
    else:
        of_parameters = [*lim_parameter_gradients(of_attended, value, lim)]
    of_lim = _of_types(of_parameters, parts.lim)
    del of_attended  # here and below, so that not all is there at once
    normed, mean, rstd = normalise(x, *parts.norm)
    of_reads, of_projection = _layer_gradients(maps, normed, parts.projection)
    return of_reads, (mean, rstd), [*of_projection, *of_lim, *of_out]


def _list_gradients(grad: Tensor, x: Tensor, room: Tensor, parts: ListParts) -> _BeforeNorm | None:
    query, key_value, attended, *kept = kept_of_list(room, x, parts)
    heads, widths = parts.heads, [parts.heads * width for width in parts.widths]
    lists = [split_heads(one, heads) for one in (query, *key_value.split(widths, dim=-1))]
    kernel = lists_kernel(*lists)
    if kernel is None:
        return None
    (of_attended,), of_out = _layer_gradients([grad], attended, parts.to_out)
    found = kernel.attend_to_few_backward(split_heads(of_attended, heads), *lists, parts.scale)
    of_query, of_key, of_value = (merge_heads(one) for one in found)
    of_key_value = torch.cat([of_key, of_value], dim=-1)
    del of_attended, found, of_key, of_value
    normed, mean, rstd = normalise(x, *parts.norm)
    (of_read,), of_layer = _layer_gradients([of_query], normed, parts.to_query)
    del of_query
    of_reduction: Gradients = [None] * 6
    if parts.is_dense():
        cells = cut_into_cells(normed, parts.factor)
        (of_cells,), of_last = _layer_gradients([of_key_value], cells, parts.to_key_value)
        del cells
        second = map_of_cells(of_cells, normed.shape, parts.factor)
    elif parts.reduction is None:
        (second,), of_last = _layer_gradients([of_key_value], normed, parts.to_key_value)
    else:
        (of_active,), of_last = _layer_gradients([of_key_value], kept[1], parts.to_key_value)
        second, of_reduction = _reduction_gradients(of_active, normed, kept[0], parts.reduction)
    return [of_read, second], (mean, rstd), [*of_layer, *of_reduction, *of_last, *of_out]


def _reduction_gradients(grad: Tensor, normed: Tensor, reduced: Tensor, parts: Reduction) -> tuple[Tensor, Gradients]:
    """Those for the normed map, and for the tensors of a reduction."""
    weight, bias = (one if one is None else one.to(reduced.dtype) for one in parts.scaling)
    scaled = linear(reduced, cast(Tensor, weight), bias)
    activates, mean, rstd = normalise(scaled, *parts.norm)
    of_inner = torch.ops.aten.gelu_backward(grad, activates)
    needs = True, True, True
    of_scaled, *of_norm = norm_gradients([of_inner], scaled, mean, rstd, parts.norm.weight, parts.norm.bias, needs)
    (of_reduced,), of_scaling = _layer_gradients([cast(Tensor, of_scaled)], reduced, parts.scaling)
    b, h, w, c = normed.shape
    factor = parts.cells.weight.shape[-1]
    of_cells = of_reduced.view(b, h // factor, w // factor, c)
    of_read, *found = cell_convolution_gradients(of_cells, normed, parts.cells.weight, factor, needs)
    return cast(Tensor, of_read), [*_of_types(found, parts.cells), *of_scaling, *of_norm]


def _layer_gradients(grads: Sequence[Tensor], read: Tensor, layer: Layer) -> tuple[list[Tensor], Gradients]:
    """Those of a linear layer whose result went on in parts: for what it read, to be added up; for weight and bias."""
    rows = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
    weights = layer.weight.to(read.dtype).split([one.shape[-1] for one in rows])
    of_read = [product(one, weight).view(read.shape) for one, weight in zip(rows, weights, strict=True)]
    of_weight = weight_gradient(rows, read.reshape(-1, read.shape[-1]))
    of_bias = None if layer.bias is None else torch.cat([sum_of_rows(one) for one in rows])
    return of_read, _of_types((of_weight, of_bias), layer)


def _of_types(grads: Sequence[Tensor | None], layer: Layer) -> Gradients:
    """For weight and bias, each of its type."""
    return [
        None if grad is None or like is None else grad.to(like.dtype) for grad, like in zip(grads, layer, strict=True)
    ]


def _attend(read: Tensor, parts: WindowParts | ListParts, *, plain: bool) -> Tensor:
    heads = parts.heads
    of_keys, of_values = (heads * width for width in parts.widths)
    if isinstance(parts, WindowParts):
        query_key, value = _apply(read, parts.projection).split([2 * of_keys, of_values], dim=-1)
        lim_weight, lim_bias = (cast(Tensor, one).to(read.dtype) for one in parts.lim)
        if parts.is_dense() and not plain:
            attended = window_attention(query_key, value, heads, parts.window_size, parts.scale)
            return attended + convolve(value, lim_weight, lim_bias, (1, 1), (1, 1), 1)
        in_windows = attend_and_convolve if plain else torch.ops.scalablevit.interactive_window_attention
        return cast(Tensor, in_windows(query_key, value, lim_weight, lim_bias, heads, parts.window_size, parts.scale))
    query, reduction, reduced = _apply(read, parts.to_query).flatten(1, 2), parts.reduction, read
    if parts.is_dense():
        reduced = cut_into_cells(fill_up_to_one_cell(read, parts.factor), parts.factor)[:, None]
    elif reduction is not None:
        scaled = _apply(_cells(read, reduction.cells, parts.factor, plain=plain), reduction.scaling)
        reduced = F.gelu(normalise(scaled, *reduction.norm)[0])
    key, value = _apply(reduced, parts.to_key_value).flatten(1, 2).split([of_keys, of_values], dim=-1)
    query, key, value = (split_heads(one, heads) for one in (query, key, value))
    if plain:
        attended = attend_fused(query, key, value, parts.scale, 0.0, None)
    else:
        attended = torch.ops.scalablevit.short_attention(query, key, value, parts.scale)
    return merge_heads(attended).unflatten(1, (read.shape[1], read.shape[2]))


def _cells(read: Tensor, layer: Layer, factor: int, *, plain: bool) -> Tensor:
    """The depthwise convolution over cells."""
    weight, bias = (cast(Tensor, one).to(read.dtype) for one in layer)
    if plain:
        return F.conv2d(read.permute(0, 3, 1, 2), weight, bias, factor, groups=weight.shape[0]).permute(0, 2, 3, 1)
    filled, stride = fill_up_to_one_cell(read, factor), [factor, factor]
    return cast(Tensor, torch.ops.scalablevit.map_convolution(filled, weight, bias, stride, [0, 0], read.shape[-1]))


def _apply(x: Tensor, layer: Layer) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))
