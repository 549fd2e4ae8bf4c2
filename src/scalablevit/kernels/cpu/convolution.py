"""Calls the C++ kernels for dense 3x3 convolutions (`winograd.h`), of a stride of 1 and with zeros around the map.

Weights are transformed for every call, to nearly twice their size. For few positions, or many channels, that takes
longer than it saves, and PyTorch convolves; the gradient of the weight has no such step.

Axes: b batch, h height, w width, c channels that are read, c' channels of the result. Tensors are in float32, on a CPU;
`selection.convolution_kernel` was asked about them.
"""

from __future__ import annotations

import ctypes
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scalablevit.kernels.cpu.attention import addresses, call_as_it_is
from scalablevit.kernels.cpu.rows import as_float
from scalablevit.kernels.selection import MAX_NATIVE_CHANNELS

_FEWEST_TILES = 48  # of 2x2 positions


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of (b, h, w, c), contiguous, with a weight (c', c, 3, 3) and a bias (c'): (b, h, w, c')."""
    if not is_worthwhile(x, weight):
        return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1).contiguous()
    weight = weight.detach().contiguous()
    return _convolve(x, weight, weight.shape[0], bias, (weight.stride(0), weight.stride(1), 1))


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of x, weight and bias, as far as they are needed, from that of the result (b, h, w, c'), contiguous."""
    grad_x = grad_weight = None
    if needs[0] and not is_worthwhile(x, weight):
        images, no = (one.permute(0, 3, 1, 2) for one in (grad, x)), [0, 0]
        arguments = *images, weight, None, [1, 1], [1, 1], [1, 1], False, no, 1, [True, False, False]
        grad_x = torch.ops.aten.convolution_backward(*arguments)[0].permute(0, 2, 3, 1)
    elif needs[0]:  # a convolution as well, of the gradient, with the weight's sides changed, and its last tap first
        weight = weight.detach().contiguous()
        strides = weight.stride(1), weight.stride(0), -1
        grad_x = _convolve(grad, weight[..., 2:, 2:], x.shape[-1], None, strides)
    if needs[1]:
        grad_weight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        tensors = addresses(x, grad, grad_weight)
        call_as_it_is("differentiate_weight", *tensors, *_map_sizes(x), x.shape[-1], grad.shape[-1])
    return grad_x, grad_weight, grad.flatten(0, 2).sum(0) if needs[2] else None


def _convolve(
    x: Tensor, first_tap: Tensor, channels: int, bias: Tensor | None, strides: tuple[int, int, int]
) -> Tensor:
    """With so many channels of the result, these, those that are read and taps so far apart in the weight."""
    out = torch.empty((*x.shape[:3], channels), dtype=x.dtype, device=x.device)
    bias = None if bias is None else as_float(bias)
    tensors = addresses(x, first_tap, bias, out)
    call_as_it_is("convolve", *tensors, *_map_sizes(x), x.shape[-1], channels, (ctypes.c_int64 * 3)(*strides))
    return out


def is_worthwhile(x: Tensor, weight: Tensor) -> bool:
    """Whether what is saved of the products outweighs what the weight takes to be transformed."""
    tiles = x.shape[0] * math.ceil(x.shape[1] / 2) * math.ceil(x.shape[2] / 2)
    return tiles >= _FEWEST_TILES and max(weight.shape[:2]) <= MAX_NATIVE_CHANNELS


def _map_sizes(x: Tensor) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(size) for size in x.shape[:3]]
