"""Calls the C++ kernels for depthwise convolutions (`depthwise.h`): 3x3 with zeros around the map, and over cells.

Axes: b batch, h height, w width, c channels, r positions along each side of a cell. Maps are (b, h, w, c), on a CPU,
of a type that `selection.depthwise_kernel` was asked about; weights are (c, 1, 3, 3) or (c, 1, r, r), of that type or
float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from scalablevit.kernels.cpu.attention import addresses, call, taps_of
from scalablevit.kernels.cpu.calls import BlockCall


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, residual: bool = False) -> Tensor:
    """The 3x3 convolution of a contiguous map, plus that map if wanted: contiguous."""
    return convolution_call(x, (weight, bias), residual=residual)(x, (weight, bias))


def convolution_call(x: Tensor, parameters: Sequence[Tensor | None], *, residual: bool) -> BlockCall:
    """What does that for maps such as x, (b, h, w, c), with a weight, (c, 1, 3, 3), and a bias, (c), or None."""
    room, sizes = -(-9 * x.shape[-1] * 4 // x.itemsize), (*x.shape, int(residual))
    return BlockCall.of("convolve_depthwise", x, parameters, room=room, sizes=sizes)


def parameter_gradients(grad: Tensor, x: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Of weight and bias of a 3x3 convolution of a map of any strides, from that of its result.

    Args:
        grad: (b, h, w, c), contiguous.
        x: (b, h, w, c).
        like: The weight, (c, 1, 3, 3).

    Returns:
        Both of the type of `like`.
    """
    out = torch.empty((10, x.shape[-1]), dtype=torch.float32, device=x.device)
    x = x if x.stride(-1) == 1 else x.contiguous()
    strides = (ctypes.c_int64 * 3)(*x.stride()[:3])
    call("differentiate_depthwise", x.dtype, *addresses(grad, x, out), *_sizes(x), strides)
    return _parameters(out, like)


def cell_gradients(grad: Tensor, x: Tensor, weight: Tensor, *, needs_x: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of a convolution over cells: for a contiguous map x, for its weight, and for its bias.

    Args:
        grad: Of the result, (b, h / r, w / r, c), contiguous, of the type of x.
        x: (b, h, w, c), contiguous.
        weight: (c, 1, r, r).
        needs_x: Whether the gradient for x is wanted.
    """
    r = weight.shape[-1]
    whole = x.shape[1] % r == 0 and x.shape[2] % r == 0
    grad_x = None if not needs_x else torch.empty_like(x) if whole else torch.zeros_like(x)
    out = torch.empty((r * r + 1, x.shape[-1]), dtype=torch.float32, device=x.device)
    taps = taps_of(weight)
    call("differentiate_cells", x.dtype, *addresses(grad, x, taps, grad_x, out), *_sizes(x), r)
    return grad_x, *_parameters(out, weight)


def _parameters(sums: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(r * r + 1, c), the bias last, to what a weight and its bias are like."""
    weight, bias = sums[:-1].t().reshape(like.shape), sums[-1]
    return weight.to(like.dtype).contiguous(), bias.to(like.dtype, copy=True)


def _sizes(x: Tensor) -> tuple[ctypes.c_int64, int, int, int]:
    b, height, width, channels = x.shape
    return ctypes.c_int64(b), height, width, channels
