"""Calls the C++ kernels for products of matrices (`packing.h`), on tiles where the processor has them, else on vectors.

Axes: rows are positions, c channels. Tensors are on a CPU, of types that `selection.products_kernel` was asked about.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from scalablevit.kernels.cpu.attention import addresses, call
from scalablevit.kernels.cpu.calls import BlockCall
from scalablevit.kernels.cpu.kept_weights import kept_weight
from scalablevit.kernels.cpu.rows import as_float
from scalablevit.kernels.dropout import NO_DROPOUT, Dropout

_LONGEST_SUM = 1024  # of bfloat16 in one part

NormParameters = tuple[Tensor, Tensor, float]  # weight (c), bias (c), eps


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: NormParameters | None = None,
    residual: Tensor | None = None,
    first_columns: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``residual + norm(x) @ weight^T + bias``, in two parts where the first is to have so many columns.

    Args:
        x: (rows, c), contiguous.
        weight: (c', c), contiguous, of the type of x or float32.
        bias: (c').
        norm: The norm that x goes through first.
        residual: (rows, c'), contiguous, of the type of x.
        first_columns: A multiple of 32; None for c'.

    Returns:
        (rows, first_columns) and (rows, c' - first_columns).
    """
    rows, columns = x.shape[0], weight.shape[0]
    first = columns if first_columns is None else first_columns
    out, second = (torch.empty((rows, wide), dtype=x.dtype, device=x.device) for wide in (first, columns - first))
    norm_weight, norm_bias, eps = _norm(norm)
    weight, bias = weight.detach(), None if bias is None else as_float(bias)
    kept = kept_weight(weight)
    call(
        "linear",
        (x.dtype, weight.dtype),
        *addresses(x, norm_weight, norm_bias, weight, bias, residual, out, second),
        ctypes.c_int64(rows),
        x.shape[1],
        columns,
        first,
        ctypes.c_float(eps),
        ctypes.c_void_p(None if kept is None else kept.address),
    )
    return out, second


def feed_forward(
    x: Tensor,
    norm: NormParameters | None,
    layers: tuple[Tensor, Tensor, Tensor, Tensor],
    out: Tensor,
    *,
    residual: bool,
    dropout: Dropout = NO_DROPOUT,
    kept: Tensor | None = None,
) -> None:
    """``dropout(linear(dropout(gelu(linear(norm(x))))))``, plus x if wanted, into `out`.

    Args:
        x: (rows, c), contiguous.
        norm: The norm that x goes through first.
        layers: Weight (f, c) and bias (f) of the first, (c, f) and (c) of the second layer. Weights are contiguous, of
            the type of x or float32.
        out: (rows, c), contiguous, of the type of x.
        residual: Whether x is added.
        dropout: Of the hidden layer, (rows, f); `another` one of what the second layer gives, (rows, c).
        kept: Where what the first layer gives goes, too: (rows, f), contiguous, of the type of x.
    """
    norm_weight, norm_bias, eps = (None, None, 0.0) if norm is None else norm
    parameters = norm_weight, norm_bias, *layers
    feed_forward_call(x, parameters, eps, residual=residual, dropout=dropout).into(out, x, parameters, kept)


def feed_forward_call(
    x: Tensor, parameters: Sequence[Tensor | None], eps: float, *, residual: bool, dropout: Dropout = NO_DROPOUT
) -> BlockCall:
    """What does a `feed_forward` of maps such as x, (..., c), contiguous, with parameters in that order."""
    weight = parameters[2]
    assert weight is not None
    hidden, width = weight.shape
    settings = dropout.arguments()[0], *dropout.another().arguments()
    sizes = x.numel() // width, width, hidden, int(residual)
    return BlockCall.of(
        "feed_forward_block", x, parameters, layers=(2, 4), sizes=sizes, factors=(eps,), settings=settings
    )


def differentiate_feed_forward(
    grad: Tensor, read: Tensor, layers: tuple[Tensor, Tensor, Tensor], *, kept: Tensor | None, dropout: Dropout
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``linear(dropout(gelu(linear(read))))`` for what it reads, and for the parameters but the last bias.

    Args:
        grad: Of the result: (rows, c), contiguous.
        read: (rows, c), contiguous, of the type of grad.
        layers: Weight (f, c) and bias (f) of the first, weight (c, f) of the second layer, as in `feed_forward`.
        kept: What the first layer gave, if it was kept: (rows, f), contiguous, of the type of grad.
        dropout: Of the hidden layer.

    Returns:
        (rows, c), of the type of grad; and (f, c), (f) and (c, f) in float32.
    """
    (rows, width), hidden = grad.shape, layers[0].shape[0]
    weight1, bias1, weight2 = layers[0], as_float(layers[1]), layers[2]
    # Not in one piece of memory, which the gradient of either would keep for all; whatever PyTorch's defaults are.
    of_weight1, of_weight2, of_bias1 = (
        torch.empty(size, dtype=torch.float32, device=grad.device)
        for size in ((hidden, width), (width, hidden), (hidden,))
    )
    grad_read = torch.empty_like(grad)
    tensors = grad, read, kept, weight1, bias1, weight2, grad_read, of_weight1, of_weight2, of_bias1
    numbers = *(0 if one is None else one.data_ptr() for one in tensors), rows, width, hidden
    settings = (ctypes.c_int64 * len(numbers))(*numbers)
    call("differentiate_feed_forward", (grad.dtype, weight1.dtype), settings, *dropout.arguments())
    return grad_read, of_weight1, of_bias1, of_weight2


def multiply(left: Tensor, right: Tensor, out: Tensor | None = None, *, adds: bool = False) -> Tensor:
    """``left @ right``, or that added to `out`, of (m, k) and (k, n) of one type.

    Args:
        left: (m, k); one of the axes has stride 1, or is made to have it.
        right: (k, n), likewise.
        out: (m, n), rows contiguous, of the type of both or float32; None for a new one of their type.
        adds: Whether the product is added to `out`.
    """
    if out is None:
        # Long sums are made in parts, and so in float32.
        dtype = torch.float32 if left.shape[1] > _LONGEST_SUM else left.dtype
        out = torch.empty((left.shape[0], right.shape[1]), dtype=dtype, device=left.device)
        return multiply(left, right, out).to(left.dtype)
    if left.shape[1] == 0:  # sums of nothing
        return out if adds else out.zero_()
    left, right = _with_a_unit_stride(left), _with_a_unit_stride(right)
    call(
        "multiply",
        (left.dtype, out.dtype),
        *addresses(left, right, out),
        *(ctypes.c_int64(size) for size in (left.shape[0], right.shape[1], left.shape[1])),
        (ctypes.c_int64 * 4)(*left.stride(), *reversed(right.stride())),
        ctypes.c_int64(out.stride(0)),
        int(adds),
    )
    return out


def _norm(norm: NormParameters | None) -> tuple[Tensor | None, Tensor | None, float]:
    return (None, None, 0.0) if norm is None else (as_float(norm[0]), as_float(norm[1]), norm[2])


def _with_a_unit_stride(x: Tensor) -> Tensor:
    return x if 1 in x.stride() else x.contiguous()
