"""The backward pass of an attention whose forward pass was one call: what its autograd function runs.

Axes: b batch, h height, w width, c channels. Maps are (b, h, w, c). What the forward pass keeps is the map, and what
the kernel left in its room: queries, keys, values, what was attended to. The norm is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scalablevit.cell_convolutions import cell_convolution_gradients
from scalablevit.dot_product import attend_fused, merge_heads, split_heads
from scalablevit.interactive_windows import attend_and_convolve, lim_parameter_gradients
from scalablevit.kernels.cpu.blocks import kept_of_list, kept_of_windows
from scalablevit.kernels.parts import Layer, ListParts, Norm, Reduction, WindowParts
from scalablevit.kernels.selection import lists_kernel, windows_kernel
from scalablevit.layers import linear
from scalablevit.products import product, sum_of_rows, weight_gradient
from scalablevit.recomputation import norm_gradients, normalise

Found = list[Tensor | None]


def run_plainly(x: Tensor, parts: WindowParts | ListParts, *, residual: bool) -> Tensor:
    """The attention of a map in operations that autograd records, all in the type of the map."""
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused attention has no second derivative
        read = normalise(x, *parts.norm)[0]
        attended = _windows_plainly(read, parts) if isinstance(parts, WindowParts) else _list_plainly(read, parts)
    out = _apply(attended, parts.to_out)
    return x + out if residual else out


def gradients(
    grad: Tensor, x: Tensor, room: Tensor, parts: WindowParts | ListParts, *, residual: bool, needs: Sequence[bool]
) -> Found | None:
    """Those for the map and for each of the tensors of its parts; None where no kernel takes what was kept.

    Args:
        grad: Of the result, (b, h, w, c), contiguous.
        x: The map.
        room: What the forward pass left behind.
        parts: What the attention is made of.
        residual: Whether the map was added.
        needs: Which gradients are wanted.
    """
    stream = grad if residual else None
    if isinstance(parts, WindowParts):
        return _window_gradients(grad, x, room, parts, stream, needs)
    return _list_gradients(grad, x, room, parts, stream, needs)


def _window_gradients(
    grad: Tensor, x: Tensor, room: Tensor, parts: WindowParts, stream: Tensor | None, needs: Sequence[bool]
) -> Found | None:
    query_key, value, attended = kept_of_windows(room, x, parts)
    settings = parts.heads, parts.window_size
    kernel = windows_kernel(query_key, value, *settings)
    if kernel is None:
        return None
    (of_attended,), of_out = _layer_gradients([grad], attended, parts.to_out, (any(needs[:7]), *needs[7:]))
    if of_attended is None:
        return [None] * 7 + of_out
    lim = parts.lim.weight
    maps = kernel.attend_in_windows_backward(of_attended, query_key, value, *settings, parts.scale, lim)
    of_lim: Found = [None, None]
    if any(needs[5:7]):
        of_lim = _as_wanted(lim_parameter_gradients(of_attended, value, lim.to(x.dtype)), parts.lim, needs[5:7])
    if not any(needs[:5]):
        return [None] * 5 + of_lim + of_out
    normed, *moments = normalise(x, *parts.norm)
    of_reads, of_projection = _layer_gradients(maps, normed, parts.projection, (any(needs[:3]), *needs[3:5]))
    return [*_norm_gradients(of_reads, x, moments, parts.norm, needs, stream), *of_projection, *of_lim, *of_out]


def _list_gradients(
    grad: Tensor, x: Tensor, room: Tensor, parts: ListParts, stream: Tensor | None, needs: Sequence[bool]
) -> Found | None:
    query, key_value, attended, *kept = kept_of_list(room, x, parts)
    heads, widths = parts.heads, [parts.heads * width for width in parts.widths]
    lists = [split_heads(one, heads) for one in (query, *key_value.split(widths, dim=-1))]
    kernel = lists_kernel(*lists)
    if kernel is None:
        return None
    (of_attended,), of_out = _layer_gradients([grad], attended, parts.to_out, (any(needs[:13]), *needs[13:]))
    if of_attended is None:
        return [None] * 13 + of_out
    found = kernel.attend_to_few_backward(split_heads(of_attended.view(attended.shape), heads), *lists, parts.scale)
    of_query, of_key, of_value = (merge_heads(one) for one in found)
    normed, *moments = normalise(x, *parts.norm)
    reads = any(needs[:3])
    (of_read,), of_layer = _layer_gradients(
        [of_query.view(*x.shape[:3], -1)], normed, parts.to_query, (reads, *needs[3:5])
    )
    of_key_value, reduction = torch.cat([of_key, of_value], dim=-1), parts.reduction
    if reduction is None:
        last = reads, *needs[11:13]
        (second,), of_last = _layer_gradients([of_key_value.view(*x.shape[:3], -1)], normed, parts.to_key_value, last)
        of_reduction: Found = [None] * 6
    else:
        last = any(needs[:11]), *needs[11:13]
        (of_active,), of_last = _layer_gradients([of_key_value], kept[1], parts.to_key_value, last)
        second, *of_reduction = _reduction_gradients(of_active, normed, kept[0], reduction, (reads, *needs[5:11]))
    of_norm = _norm_gradients([of_read, second], x, moments, parts.norm, needs, stream)
    return [*of_norm, *of_layer, *of_reduction, *of_last, *of_out]


def _reduction_gradients(
    grad: Tensor | None, normed: Tensor, reduced: Tensor, parts: Reduction, needs: Sequence[bool]
) -> Found:
    """Those for the normed map and for each of the tensors of a reduction."""
    if grad is None:
        return [None] * 7
    weight, bias = (one if one is None else one.to(reduced.dtype) for one in parts.scaling)
    scaled = linear(reduced, cast(Tensor, weight), bias)
    activates, *moments = normalise(scaled, *parts.norm)
    of_inner = torch.ops.aten.gelu_backward(grad, activates)
    wanted = any(needs[:5]), *needs[5:7]
    of_scaled, *of_inner_norm = _norm_gradients([of_inner], scaled, moments, parts.norm, wanted, None)
    if of_scaled is None:
        return [None] * 5 + of_inner_norm
    (of_reduced,), of_scaling = _layer_gradients([of_scaled], reduced, parts.scaling, (any(needs[:3]), *needs[3:5]))
    if of_reduced is None:
        return [None] * 3 + of_scaling + of_inner_norm
    cells, factor = parts.cells.weight, parts.cells.weight.shape[-1]
    b, h, w, c = normed.shape
    of_cells = of_reduced.view(b, h // factor, w // factor, c)
    of_read, *found = cell_convolution_gradients(of_cells, normed, cells.to(normed.dtype), factor, needs[:3])
    return [of_read, *_as_wanted(found, parts.cells, needs[1:3]), *of_scaling, *of_inner_norm]


def _layer_gradients(
    grads: Sequence[Tensor], read: Tensor, layer: Layer, needs: Sequence[bool]
) -> tuple[Sequence[Tensor | None], Found]:
    """Those of a linear layer whose result went on in parts: for what it read, to be added up; for weight and bias."""
    rows = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
    weights = layer.weight.to(read.dtype).split([one.shape[-1] for one in rows])
    of_read: list[Tensor | None] = [None] * len(grads)
    if needs[0]:
        of_read = [product(one, weight).view(read.shape) for one, weight in zip(rows, weights, strict=True)]
    of_weight = weight_gradient(rows, read.reshape(-1, read.shape[-1])) if needs[1] else None
    of_bias = torch.cat([sum_of_rows(one) for one in rows]) if needs[2] else None
    return of_read, _as_wanted((of_weight, of_bias), layer, (True, True))


def _norm_gradients(
    grads: Sequence[Tensor | None],
    x: Tensor,
    moments: Sequence[Tensor],
    norm: Norm,
    needs: Sequence[bool],
    stream: Tensor | None,
) -> tuple[Tensor | None, ...]:
    found = [one for one in grads if one is not None]  # all are there, or none is wanted
    mean, rstd = moments
    return norm_gradients(found, x, mean, rstd, norm.weight, norm.bias, needs[:3], residual=stream)


def _as_wanted(grads: Sequence[Tensor | None], layer: Layer, needs: Sequence[bool]) -> Found:
    """For weight and bias, each of its type; None for what is not wanted."""
    return [
        grad.to(like.dtype) if grad is not None and like is not None and needed else None
        for grad, like, needed in zip(grads, layer, needs, strict=True)
    ]


def _windows_plainly(read: Tensor, parts: WindowParts) -> Tensor:
    widths = [2 * parts.heads * parts.widths[0], parts.heads * parts.widths[1]]
    query_key, value = _apply(read, parts.projection).split(widths, dim=-1)
    weight, bias = (cast(Tensor, one).to(read.dtype) for one in parts.lim)
    return attend_and_convolve(query_key, value, weight, bias, parts.heads, parts.window_size, parts.scale)


def _list_plainly(read: Tensor, parts: ListParts) -> Tensor:
    query, reduction, reduced = _apply(read, parts.to_query), parts.reduction, read
    if reduction is not None:
        weight, bias = (cast(Tensor, one).to(read.dtype) for one in reduction.cells)
        reduced = F.conv2d(read.permute(0, 3, 1, 2), weight, bias, parts.factor, groups=weight.shape[0])
        scaled = _apply(reduced.permute(0, 2, 3, 1), reduction.scaling)
        reduced = F.gelu(normalise(scaled, *reduction.norm)[0])
    key_value = _apply(reduced, parts.to_key_value).flatten(1, 2)
    key, value = key_value.split([parts.heads * width for width in parts.widths], dim=-1)
    query, key, value = (split_heads(one, parts.heads) for one in (query.flatten(1, 2), key, value))
    attended = merge_heads(attend_fused(query, key, value, parts.scale, 0.0, None))
    return attended.unflatten(1, (read.shape[1], read.shape[2]))


def _apply(x: Tensor, layer: Layer) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))
