"""Patch embeddings in one call, where nothing is recorded: the convolution as a product, and the norm behind it.

Axes: b batch, h height, w width, c channels that come in, f that go out, r positions along each side of the kernel.
Maps are (b, h, w, c). PyTorch lays the weight of a convolution out anew at each call, and with one small image most of
the time of a patch embedding goes by around the product.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from scalablevit.kernels.cpu.calls import BlockCall
from scalablevit.kernels.parts import Layer, Norm
from scalablevit.kernels.remembered import remembered
from scalablevit.kernels.selection import is_readable, patches_kernel
from scalablevit.kernels.switches import choices
from scalablevit.recomputation import autocast_dtype, product_dtype


def embed_natively(x: Tensor, layer: Layer, norm: Norm | None, *, stride: int, padding: int) -> Tensor | None:
    """A map convolved, then normalised, as autocast has it; None where no kernel does that, or had better not.

    Args:
        x: (b, h, w, c), of which nothing is recorded.
        layer: The convolution: (f, c, r, r), with or without a bias.
        norm: Over the channels of the result; None for none.
        stride: Positions between those of the result.
        padding: Zeros around the map.

    Returns:
        (b, h', w', f), contiguous.
    """
    weight, bias = layer
    if x.ndim != 4 or weight.ndim != 4 or not x.is_cpu:
        return None
    sides = [(x.shape[axis] + 2 * padding - weight.shape[2]) // stride + 1 for axis in (1, 2)]
    dtype = autocast_dtype()
    x = x.contiguous() if dtype is None else x.contiguous().to(dtype)
    if not is_readable(x) or min(sides) < 1:
        return None
    out_size = x.shape[0], *sides, weight.shape[0]
    norm_weight, norm_bias, eps = (None, None, 0.0) if norm is None else norm
    # The kernel reads weights of layers as they are, all other parameters in float32.
    tensors = weight if weight.dtype == torch.float32 else weight.flatten(1), bias, norm_weight, norm_bias
    case = x.shape, x.dtype, weight.shape, dtype, stride, padding, eps, *choices.values()

    def find() -> BlockCall | None:
        expected = [(out_size[-1], x.shape[-1], weight.shape[2], weight.shape[2]), *[out_size[-1:]] * 3]
        if any(
            one is not None and one.shape != size for one, size in zip((weight, *tensors[1:]), expected, strict=True)
        ):
            return None  # the layers say what is wrong
        if product_dtype(x, norm, (weight, bias)) != x.dtype:
            return None
        kernel = patches_kernel(
            x, weight, bias, norm_weight, norm_bias, positions=out_size[1] * out_size[2] * out_size[0]
        )
        if kernel is None:
            return None
        return cast(
            BlockCall, kernel.patch_call(x, tensors, stride=stride, padding=padding, out_size=out_size, eps=eps)
        )

    run = remembered(case, tensors, find)
    if run is None:
        return None
    out = x.new_empty(out_size)
    run.into(out, x, tensors, x.new_empty(run.room))
    return out
