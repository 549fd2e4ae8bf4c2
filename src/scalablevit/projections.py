"""A LayerNorm and the layers that read it, as one step of autograd that keeps only what the norm reads.

Axes: b batch, h height, w width, c channels, r positions along each side of a cell.

The queries, keys and values of an attention all come from one norm. Recorded layer by layer that keeps the norm's
input, its result, and for keys and values on a reduced map its result once more, cell by cell. Here the backward pass
computes the norm again, which costs little beside the products with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scalablevit.cell_convolutions import cell_convolution_gradients
from scalablevit.cells import map_of_cells
from scalablevit.convolutions import convolve
from scalablevit.kernels.parts import Norm
from scalablevit.layers import linear
from scalablevit.products import product, sum_of_rows
from scalablevit.recomputation import (
    is_recorded,
    may_recompute,
    norm_gradients,
    normalise,
    product_dtype,
    without_autocast,
)


class Projection(NamedTuple):
    """A layer that reads a map: a linear layer over positions or cells, or the depthwise convolution of a `CellConv2d`.

    Args:
        weight: (f, r * r * c) of a linear layer, or (c, 1, r, r) of the convolution.
        bias: (f) or None.
        cell: r; 1 for a layer over positions.
    """

    weight: Tensor
    bias: Tensor | None
    cell: int = 1


def is_worthwhile(x: Tensor, norm: Norm, projections: Sequence[Projection]) -> bool:
    """Whether a backward pass will come, and `normed_projections` serves such types, and a map of such a size."""
    parameters = [tensor for weight, bias, _ in projections for tensor in (weight, bias)]
    if not may_recompute(x) or not is_recorded(x, norm.weight, norm.bias, *parameters):
        return False
    if any(x.shape[1] % cell or x.shape[2] % cell for _, _, cell in projections):
        return False  # such a map is filled up or cropped first
    return product_dtype(x, norm, parameters) is not None


def normed_projections(x: Tensor, norm: Norm, projections: Sequence[Projection]) -> tuple[Tensor, ...]:
    """The map, and what each of the layers gives for norm(x), where that `is_worthwhile`.

    What is added to the map that comes back has its gradient added where that of the norm is written, which spares a
    trip through memory.

    Args:
        x: (b, h, w, c).
        norm: The norm that x goes through first.
        projections: The layers.

    Returns:
        x; and for each layer (b, h, w, f), or (b, cells, f), or, of a convolution, (b, h / r, w / r, c).
    """
    parameters = [tensor for weight, bias, _ in projections for tensor in (weight, bias)]
    cells = [cell for _, _, cell in projections]
    dtype = product_dtype(x, norm, parameters)
    out: tuple[Tensor, ...] = _NormedProjections.apply(dtype, norm.eps, cells, x, norm.weight, norm.bias, *parameters)
    return out


class _NormedProjections(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, eps: float, cells: list[int], x: Tensor, *others: Any
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *others)
        ctx.settings = dtype, eps, cells
        ctx.set_materialize_grads(False)  # of the map, where nothing is added to it
        with without_autocast(x):
            return x, *_forward(dtype, eps, cells, x, *others)

    @staticmethod
    def backward(ctx: Any, stream: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        arguments, needs = ctx.saved_tensors, ctx.needs_input_grad[3:]
        with without_autocast(arguments[0]):  # all that runs here can be differentiated once more
            return None, None, None, *_gradients(stream, grads, *ctx.settings, *arguments, needs=needs)


def _forward(
    dtype: torch.dtype,
    eps: float,
    cells: list[int],
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *parameters: Tensor | None,
) -> tuple[Tensor, ...]:
    read = normalise(x, norm_weight, norm_bias, eps)[0].to(dtype)
    return tuple(
        _project(read, weight.to(dtype), None if bias is None else bias.to(dtype), cell)
        for weight, bias, cell in _by_layer(parameters, cells)
    )


def _project(read: Tensor, weight: Tensor, bias: Tensor | None, cell: int) -> Tensor:
    if weight.ndim == 4:
        return convolve(read, weight, bias, (cell, cell), (0, 0), weight.shape[0])
    return linear(read if cell == 1 else _cells(read, cell).flatten(3).flatten(1, 2), weight, bias)


def _gradients(
    stream: Tensor | None,
    grads: tuple[Tensor | None, ...],
    dtype: torch.dtype,
    eps: float,
    cells: list[int],
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *parameters: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    normed, mean, rstd = normalise(x, norm_weight, norm_bias, eps)
    read = normed.to(dtype)
    of_read: list[Tensor] = []
    of_parameters: list[Tensor | None] = []
    for i, (weight, _, cell) in enumerate(_by_layer(parameters, cells)):
        wanted = any(needs[:3]), *needs[3 + 2 * i : 5 + 2 * i]
        grad = grads[i]
        found: tuple[Tensor | None, ...] = (None, None, None)
        if grad is not None and weight.ndim == 4:
            found = cell_convolution_gradients(grad, read, weight.to(dtype), cell, wanted)
        elif grad is not None:
            found = _linear_gradients(grad, read, weight.to(dtype), cell, wanted)
        of_read += [] if found[0] is None else [found[0]]
        of_parameters += [None if one is None else one.to(weight.dtype) for one in found[1:]]
    if not of_read:
        return stream, None, None, *of_parameters
    of_norm = norm_gradients(of_read, x, mean, rstd, norm_weight, norm_bias, needs[:3], residual=stream)
    return *of_norm, *of_parameters


def _linear_gradients(
    grad: Tensor, read: Tensor, weight: Tensor, cell: int, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    rows = (read if cell == 1 else _cells(read, cell)).reshape(-1, weight.shape[1])
    grad_rows = grad.reshape(-1, weight.shape[0])
    grad_read = None
    if needs[0]:
        grad_read = product(grad_rows, weight)
        grad_read = grad_read.view(read.shape) if cell == 1 else map_of_cells(grad_read, read.shape, cell)
    return grad_read, product(grad_rows.t(), rows) if needs[1] else None, sum_of_rows(grad_rows) if needs[2] else None


def _cells(x: Tensor, cell: int) -> Tensor:
    """(b, h, w, c) to (b, h / r, w / r, r, r, c), without a copy."""
    b, h, w, c = x.shape
    return x.view(b, h // cell, cell, w // cell, cell, c).transpose(2, 3)


def _by_layer(parameters: Sequence[Any], cells: list[int]) -> list[tuple[Tensor, Tensor | None, int]]:
    return list(zip(parameters[::2], parameters[1::2], cells, strict=True))
