"""Calls the C++ kernels for what happens to each position alone: norm, bias, GELU, the sum with the residual stream.

Axes: rows are positions, c channels. Tensors are (rows, c), contiguous, on a CPU, of a type that
`selection.rows_kernel` was asked about; parameters, (c), are of any floating type.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from scalablevit.kernels.cpu.attention import addresses, call


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the channels."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    weight, bias = as_float(weight), as_float(bias)
    call("normalise", x.dtype, *addresses(x, weight, bias, out), *_sizes(x), ctypes.c_float(eps))
    return out


def add_bias_gelu_(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias), in place."""
    bias = as_float(bias)
    call("add_bias_gelu", x.dtype, *addresses(x, bias), *_sizes(x))
    return x


def differentiate_gelu_(grad: Tensor, x: Tensor, bias: Tensor) -> None:
    """From the gradient for gelu(x + bias) that for x, in place; and in the place of x gelu(x + bias)."""
    bias = as_float(bias)
    call("differentiate_gelu", x.dtype, *addresses(grad, x, bias), *_sizes(x))


def add_bias_residual_(x: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """The sum of x, bias and residual, in place."""
    bias = as_float(bias)
    call("add_bias_residual", x.dtype, *addresses(x, bias, residual), *_sizes(x))
    return x


def as_float(parameter: Tensor) -> Tensor:
    """A parameter as the kernels read it."""
    if parameter.dtype == torch.float32 and parameter.is_contiguous():
        return parameter
    return parameter.detach().float().contiguous()


def _sizes(x: Tensor) -> tuple[ctypes.c_int64, int]:
    return ctypes.c_int64(x.shape[0]), x.shape[1]
