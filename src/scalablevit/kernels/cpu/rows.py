"""Calls the C++ kernels for what happens to each position alone: norm, bias, GELU, dropout, the sum with the residual
stream, and sums over positions.

Axes: rows are positions, c channels. Tensors are (rows, c), contiguous, on a CPU, of a type that
`selection.rows_kernel` was asked about; parameters, (c), are of that type or float32.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from scalablevit.kernels.cpu.attention import addresses, call
from scalablevit.kernels.dropout import NO_DROPOUT, Dropout


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, moments: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """LayerNorm over the channels.

    Args:
        x: (..., c), as the result is.
        weight: (c).
        bias: (c).
        eps: Added to the variance.
        moments: Where mean and 1 / standard deviation of each row go: two in float32, contiguous.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    weight, bias = as_float(weight), as_float(bias)
    mean, rstd = (None, None) if moments is None else moments
    width = x.shape[-1]
    rows = ctypes.c_int64(x.numel() // max(width, 1))
    call("normalise", x.dtype, *addresses(x, weight, bias, out, mean, rstd), rows, width, ctypes.c_float(eps))
    return out


def differentiate_norm(
    grad: Tensor,
    second: Tensor | None,
    x: Tensor,
    moments: tuple[Tensor, Tensor],
    weight: Tensor,
    *,
    residual: Tensor | None,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of a LayerNorm: for x, in `out`, and for its parameters.

    Args:
        grad: Of what the norm gives, (rows, c), of the type of x, as all that follow are.
        second: What is added to that.
        x: What the norm reads.
        moments: What `normalise` found.
        weight: (c).
        residual: What is added to the gradient for x.
        out: Where that goes.

    Returns:
        Those for weight and bias: (c), float32.
    """
    of_weight, of_bias = (torch.empty(x.shape[1], dtype=torch.float32, device=x.device) for _ in range(2))
    tensors = grad, second, x, *moments, as_float(weight), residual, out, of_weight, of_bias
    call("differentiate_norm", x.dtype, *addresses(*tensors), *_sizes(x))
    return of_weight, of_bias


def sum_rows(x: Tensor) -> Tensor:
    """The sum of all rows, (c), in float32."""
    out = torch.empty(x.shape[1], dtype=torch.float32, device=x.device)
    call("sum_rows", x.dtype, *addresses(x, out), *_sizes(x))
    return out


def add_bias_gelu_(
    x: Tensor, bias: Tensor, dropout: Dropout = NO_DROPOUT, first_row: int = 0, out: Tensor | None = None
) -> Tensor:
    """dropout(gelu(x + bias)), in place, or in `out`; then x is x + bias afterwards.

    Rows are those from `first_row` on of what is dropped from, here and below.
    """
    bias, out = as_float(bias), x if out is None else out
    call("add_bias_gelu", x.dtype, *addresses(x, bias, out), *_sizes(x), *_dropping(dropout, first_row))
    return out


def differentiate_gelu_(
    grad: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dropout: Dropout = NO_DROPOUT,
    first_row: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """From the gradient for dropout(gelu(x + bias)) that for x, in place.

    Returns:
        dropout(gelu(x + bias)): in the place of x, or in `out`, which leaves x as it is.
    """
    bias, out = None if bias is None else as_float(bias), x if out is None else out
    call("differentiate_gelu", x.dtype, *addresses(grad, x, bias, out), *_sizes(x), *_dropping(dropout, first_row))
    return out


def add_bias_residual_(
    x: Tensor, bias: Tensor, residual: Tensor | None, dropout: Dropout = NO_DROPOUT, first_row: int = 0
) -> Tensor:
    """dropout(x + bias) + residual, in place."""
    bias = as_float(bias)
    call("add_bias_residual", x.dtype, *addresses(x, bias, residual, x), *_sizes(x), *_dropping(dropout, first_row))
    return x


def drop(x: Tensor, dropout: Dropout, residual: Tensor | None = None, first_row: int = 0) -> Tensor:
    """dropout(x), plus residual."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    call("add_bias_residual", x.dtype, *addresses(x, None, residual, out), *_sizes(x), *_dropping(dropout, first_row))
    return out


def as_float(parameter: Tensor) -> Tensor:
    """A parameter as the kernels read it."""
    if parameter.dtype == torch.float32 and parameter.is_contiguous():
        return parameter
    return parameter.detach().float().contiguous()


def _sizes(x: Tensor) -> tuple[ctypes.c_int64, int]:
    return ctypes.c_int64(x.shape[0]), x.shape[1]


def _dropping(dropout: Dropout, first_row: int) -> tuple[Any, ...]:
    return *dropout.arguments(), ctypes.c_int64(first_row)
