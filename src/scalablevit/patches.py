"""Patch embeddings in one call, where nothing is recorded: the convolution as a product, and the norm behind it.

Axes: b batch, h height, w width, c channels that come in, f that go out, r positions along each side of the kernel.
Maps are (b, h, w, c). PyTorch lays the weight of a convolution out anew at each call, and with one small image most of
the time of a patch embedding goes by around the product.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor

from scalablevit.kernels.cpu.calls import BlockCall
from scalablevit.kernels.parts import Layer, Norm
from scalablevit.kernels.remembered import remembered
from scalablevit.kernels.selection import is_readable, multiplies_any_rows, patches_kernel
from scalablevit.kernels.switches import autocast_dtype
from scalablevit.recomputation import (
    are_plain,
    is_recorded,
    may_be_transformed,
    normalise,
    product_dtype,
    without_autocast,
)


def embed_natively(
    x: Tensor, layer: Layer, norm: Norm | None, *, stride: int, padding: int, dtype: torch.dtype | None = None
) -> Tensor | None:
    """A map convolved, then normalised; None where no kernel does that, or PyTorch is faster.

    Args:
        x: (b, h, w, c), of which nothing is recorded.
        layer: The convolution: (f, c, r, r), with or without a bias.
        norm: Over the channels of the result; None for none.
        stride: Positions between those of the result.
        padding: Zeros around the map.
        dtype: Of products; without one, as autocast has them.

    Returns:
        (b, h', w', f), contiguous.
    """
    weight, bias = layer
    if x.ndim != 4 or weight.ndim != 4 or not is_readable(x):
        return None
    norm_weight, norm_bias, eps = (None, None, 0.0) if norm is None else norm
    tensors = weight, bias, norm_weight, norm_bias
    product = autocast_dtype() if dtype is None else dtype
    case = x.shape, x.dtype, dtype, stride, padding, eps
    settings: dict[str, Any] = {"stride": stride, "padding": padding, "dtype": dtype}
    run = remembered(case, tensors, functools.partial(_call_for, x, layer, norm, **settings))
    if run is None:
        return None
    x = x.contiguous() if product is None else x.contiguous().to(product)
    out = x.new_empty(x.shape[0], *_sides(x, weight, stride, padding), weight.shape[0])
    run.into(out, x, tensors, x.new_empty(run.room))
    return out


def _call_for(
    x: Tensor, layer: Layer, norm: Norm | None, *, stride: int, padding: int, dtype: torch.dtype | None
) -> BlockCall | None:
    weight, bias = layer
    norm_weight, norm_bias, eps = (None, None, 0.0) if norm is None else norm
    side, columns = weight.shape[2:3], weight.shape[:1]
    sizes = (*columns, *x.shape[-1:], *side, *side), columns, columns, columns
    parameters = weight, bias, norm_weight, norm_bias
    if any(one is not None and one.shape != size for one, size in zip(parameters, sizes, strict=True)):
        return None  # the layers say what is wrong
    out_size = x.shape[0], *_sides(x, weight, stride, padding), weight.shape[0]
    product = product_dtype(x, norm, layer) if dtype is None else dtype
    if product is None or min(*out_size, x.shape[-1]) < 1:
        return None
    row = x.new_empty(1, x.shape[-1], dtype=product)  # in the type in which the map goes to the kernel
    kernel = patches_kernel(row, *parameters, positions=x.shape[0] * out_size[1] * out_size[2])
    if kernel is None:
        return None
    map_size = {"map_size": x.shape, "out_size": out_size, "stride": stride, "padding": padding}
    return cast(BlockCall, kernel.patch_call(row, parameters, **map_size, eps=eps))


def embed_in_graph(x: Tensor, layer: Layer, norm: Norm | None, *, stride: int, padding: int) -> Tensor | None:
    """The same as one operator of a compiled graph; None where the compiler had better see steps."""
    dtype = autocast_dtype() or x.dtype
    norm_weight, norm_bias, eps = (None, None, 0.0) if norm is None else norm
    tensors = *layer, norm_weight, norm_bias
    if x.ndim != 4 or is_recorded(x, *tensors) or not multiplies_any_rows(x.device, dtype):
        return None
    if may_be_transformed() or not are_plain(tensors) or product_dtype(x, norm, layer) != dtype:
        return None
    if layer.weight.shape[1] != x.shape[-1] or min(_sides(x, layer.weight, stride, padding)) < 1:
        return None  # PyTorch says what is wrong
    if norm_weight is not None and norm_weight.shape != layer.weight.shape[:1]:
        return None
    return cast(Tensor, _operator(x, *tensors, eps, stride, padding, dtype))


def _sides(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    """Of the result."""
    height, width = ((size + 2 * padding - weight.shape[2]) // stride + 1 for size in x.shape[1:3])
    return height, width


@torch.library.custom_op("scalablevit::embed_patches", mutates_args=())
def _operator(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    stride: int,
    padding: int,
    dtype: torch.dtype,
) -> Tensor:
    norm = None if norm_weight is None or norm_bias is None else Norm(norm_weight, norm_bias, eps)
    out = embed_natively(x, Layer(weight, bias), norm, stride=stride, padding=padding, dtype=dtype)
    if out is not None:
        return out
    with without_autocast(x):
        layer = weight.to(dtype), None if bias is None else bias.to(dtype)
        out = torch.ops.scalablevit.map_convolution(x.to(dtype), *layer, [stride] * 2, [padding] * 2, 1)
        return out if norm is None else normalise(out, *norm)[0]


@_operator.register_fake
def _operator_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    stride: int,
    padding: int,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty(x.shape[0], *_sides(x, weight, stride, padding), weight.shape[0], dtype=dtype)
