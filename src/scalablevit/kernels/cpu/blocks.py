"""Calls the C++ kernels for whole attentions of the paper's design (`blocks.h`), from the norm to the sum.

Axes: b batch, h height, w width, c channels. Tensors are on a CPU, of types and sizes that `scalablevit.blocks` has
looked at: weights are contiguous, of the type of x or float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from scalablevit.kernels.cpu.attention import call
from scalablevit.kernels.cpu.rows import as_float
from scalablevit.kernels.parts import ListParts, WindowParts


def attend_in_windows(x: Tensor, parts: WindowParts, *, residual: bool) -> Tensor:
    """The attention of x, (b, h, w, c), contiguous, plus x if wanted: (b, h, w, c), contiguous.

    Queries and keys together have a multiple of 32 channels.
    """
    heads, (key_width, value_width) = parts.heads, parts.widths
    positions = x.numel() // x.shape[-1]
    workspace = _workspace(x, 9 * heads * value_width, positions * heads * 2 * (key_width + value_width))
    window = min(parts.window_size, x.shape[1]), min(parts.window_size, x.shape[2])
    sizes = (*x.shape, heads, key_width, value_width, *window, residual)
    return _call("attend_in_windows_block", x, parts, workspace, sizes)


def attend_to_list(x: Tensor, parts: ListParts, *, residual: bool) -> Tensor:
    """The attention of x, (b, h, w, c), contiguous, plus x if wanted: (b, h, w, c), contiguous.

    The map is no smaller than a cell along either side.
    """
    heads, (key_width, value_width), factor = parts.heads, parts.widths, parts.factor
    b, h, w, c = x.shape
    cells = b * (h // factor) * (w // factor)
    numbers = (b * h * w + cells) * heads * (key_width + value_width)
    if parts.reduction is not None:
        numbers += cells * (c + heads * key_width)
    workspace = _workspace(x, factor * factor * c, numbers)
    sizes = (*x.shape, heads, key_width, value_width, factor, residual)
    return _call("attend_to_list_block", x, parts, workspace, sizes)


def _workspace(x: Tensor, floats: int, numbers: int) -> Tensor:
    """Room for so many numbers of float32, and of the type of x."""
    return x.new_empty(floats * 4 // x.itemsize + numbers)


def _call(name: str, x: Tensor, parts: WindowParts | ListParts, workspace: Tensor, sizes: Sequence[int]) -> Tensor:
    out = torch.empty_like(x)
    read = [one if one is None or one.ndim == 2 else as_float(one) for one in parts.tensors()]  # layers as they are
    tensors = x, *read, workspace, out
    addresses = [0 if one is None else one.data_ptr() for one in tensors]
    block = (ctypes.c_int64 * (len(addresses) + len(sizes)))(*addresses, *sizes)
    call(name, (x.dtype, parts.to_out.weight.dtype), block, *(ctypes.c_float(factor) for factor in parts.factors()))
    return out
