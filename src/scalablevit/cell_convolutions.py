"""Depthwise convolutions over the cells of channels-last maps, which do not overlap.

Axes: b batch, h height, w width, c channels, r positions along each side of a cell. Maps are (b, h, w, c).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scalablevit.convolutions import MapConv2d, convolve, goes_by_float32
from scalablevit.dot_product import is_eager
from scalablevit.kernels.recording import in_memory, is_batched
from scalablevit.kernels.selection import depthwise_kernel
from scalablevit.recomputation import is_recorded


class CellConv2d(MapConv2d):
    """A depthwise convolution over cells, kernel = stride = `cell`: (b, h, w, c) to (b, h // cell, w // cell, c).

    In half precision on a CPU it is a step of autograd of its own: PyTorch's backward pass takes 7 to 16 times as long.
    """

    def __init__(self, dim: int, cell: int, **factory: Any) -> None:
        super().__init__(dim, dim, cell, cell, groups=dim, **factory)
        self.cell = cell

    def is_over_cells(self) -> bool:
        """Whether nobody changed what the convolution was made as."""
        cell, settings = (self.cell, self.cell), (self.padding, self.dilation, self.padding_mode)
        return self.stride == cell and self.groups == self.weight.shape[0] and settings == ((0, 0), (1, 1), "zeros")

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._convolve(x)
        else:
            if not _is_half_training(x, self.weight):
                return super().forward(x)
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype) if self.bias is not None else None
            out: Tensor = _CellConvolution.apply(x, weight, bias, self.cell)
            return out


def _is_half_training(x: Tensor, weight: Tensor) -> bool:
    """Whether nothing but eager PyTorch looks, in half precision on a CPU, and a backward pass will come."""
    if not is_eager(x) or not _is_half_on_cpu(x):
        return False
    if weight.dtype != x.dtype and not torch.is_autocast_enabled("cpu"):
        return False  # PyTorch says what is wrong
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def _is_half_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)


class _CellConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, cell: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.cell, ctx.has_bias = cell, bias is not None
        return convolve(x, weight, bias, (cell, cell), (0, 0), weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs = (*ctx.needs_input_grad[:2], ctx.has_bias and ctx.needs_input_grad[2])
        return *cell_convolution_gradients(grad, x, weight, ctx.cell, needs), None


def cell_convolution_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, cell: int, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of a `CellConv2d` for its input, (b, h, w, c), weight and bias."""
    dtype = x.dtype
    if not is_recorded(grad, x, weight) and not is_batched(grad) and _are_over_cells(grad, x, weight, cell):
        kernel = depthwise_kernel(x, weight)
        if kernel is not None:
            natively = kernel.cell_gradients(in_memory(grad), x, weight, needs_x=needs[0])
            grad_x, grad_weight, grad_bias = (one if need else None for one, need in zip(natively, needs, strict=True))
            return grad_x, grad_weight, grad_bias
    weight = weight.to(dtype)
    if goes_by_float32(x, dtype):
        grad, x, weight = grad.float(), x.float(), weight.float()
    elif _is_half_on_cpu(x) and weight.shape[2:] == (cell, cell):
        return _cell_gradients(grad, x, weight, cell, needs)
    grad, x = grad.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
    channels, strides = weight.shape[0], [cell, cell]
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, [channels], strides, [0, 0], [1, 1], False, [0, 0], channels, list(needs)
    )
    grad_x, grad_weight, grad_bias = (None if one is None else one.to(dtype) for one in found)
    return None if grad_x is None else grad_x.permute(0, 2, 3, 1), grad_weight, grad_bias


def _are_over_cells(grad: Tensor, x: Tensor, weight: Tensor, cell: int) -> bool:
    """Whether sizes are those of a convolution over cells, in tensors that a kernel may read."""
    size = x.shape[0], x.shape[1] // cell, x.shape[2] // cell, x.shape[3]
    if weight.shape[2:] != (cell, cell) or grad.shape != size:
        return False
    return x.is_contiguous() and grad.dtype == x.dtype and type(grad) is Tensor


def _cell_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, cell: int, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same in products and sums."""
    b, h, w, c = x.shape
    rows, columns = h // cell, w // cell
    grad = grad.contiguous().view(b, rows, 1, columns, 1, c)  # one value for each cell
    grad_x = grad_weight = None
    if needs[0]:
        kernel = weight.view(c, cell, cell).permute(1, 2, 0).contiguous()
        grad_x = (grad * kernel.view(1, 1, cell, 1, cell, c)).reshape(b, rows * cell, columns * cell, c)
        grad_x = F.pad(grad_x, (0, 0, 0, w - columns * cell, 0, h - rows * cell))  # borders were dropped
    if needs[1]:
        cells = x[:, : rows * cell, : columns * cell].reshape(b, rows, cell, columns, cell, c)
        grad_weight = (cells * grad).sum((0, 1, 3)).permute(2, 0, 1).reshape(weight.shape)
    return grad_x, grad_weight, grad.sum((0, 1, 2, 3, 4)) if needs[2] else None
