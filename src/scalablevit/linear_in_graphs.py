"""Linear layers as operators of compiled graphs, with gradients: our products where the compiler would call PyTorch's.

Axes: c channels that come in, f that go out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from scalablevit.kernels.parts import Norm
from scalablevit.kernels.recording import in_memory
from scalablevit.kernels.selection import multiplies_in_graphs, products_kernel
from scalablevit.kernels.switches import autocast_dtype
from scalablevit.products import product, sum_of_rows, weight_gradient
from scalablevit.recomputation import are_plain, is_recorded, may_be_transformed, normalise, product_dtype


def linear_in_graph(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor | None:
    """``x @ weight^T + bias``, as autocast has it, plus `residual`; None where the compiler had better see the layer.

    Args:
        x: (..., c).
        weight: (f, c).
        bias: (f).
        residual: (..., f).

    Returns:
        (..., f).
    """
    dtype = _served_dtype(x, None, weight, bias)
    if dtype is None or not are_plain((residual,)):
        return None
    adds = residual is not None and residual.dtype == dtype and residual.shape == (*x.shape[:-1], weight.shape[0])
    out = cast(Tensor, _operator(x.to(dtype), weight, bias, residual if adds else None))
    return out if adds or residual is None else residual + out


def normed_linear_in_graph(
    x: Tensor, norm: Norm, weight: Tensor, bias: Tensor | None, widths: Sequence[int]
) -> tuple[Tensor, Tensor] | None:
    """The same after a norm over the channels, in two parts of so many; None as well where it is recorded.

    Args:
        x: (..., c).
        norm: What x goes through first.
        weight: (f, c).
        bias: (f).
        widths: Two, f together.

    Returns:
        (..., widths[0]) and (..., widths[1]).
    """
    dtype = _served_dtype(x, norm, weight, bias)
    if dtype != x.dtype or widths[0] % 32 or sum(widths) != weight.shape[0]:
        return None
    if norm.weight.shape != x.shape[-1:] or is_recorded(x, norm.weight, norm.bias, weight, bias):
        return None
    return cast(tuple[Tensor, Tensor], _normed_operator(x, *norm, weight, bias, widths[0]))


def _served_dtype(x: Tensor, norm: Norm | None, weight: Tensor, bias: Tensor | None) -> torch.dtype | None:
    """In which the operators multiply; None where the compiler had better see the layers."""
    if x.device.type != "cpu" or weight.ndim != 2 or x.shape[-1:] != weight.shape[1:] or 0 in weight.shape:
        return None  # PyTorch says what is wrong
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        return None
    dtype, recorded = autocast_dtype() or x.dtype, is_recorded(x, weight, bias)
    if not multiplies_in_graphs(x.device, dtype, recorded=recorded) or product_dtype(x, norm, (weight, bias)) != dtype:
        return None
    parameters = (weight, bias) if norm is None else (weight, bias, norm.weight, norm.bias)
    return None if may_be_transformed() or not are_plain((x, *parameters)) else dtype


@torch.library.custom_op("scalablevit::linear", mutates_args=())
def _operator(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """``x @ weight^T + bias + residual``, in the type of x, which is that of the residual stream."""
    kernel = products_kernel(x, x.dtype, weight, bias)
    if kernel is None:
        out = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        return out if residual is None else out.add_(residual)
    rows, stream = _rows(x), None if residual is None else _rows(residual)
    out = kernel.linear(rows, weight, bias, residual=stream)[0]
    return cast(Tensor, out.view(*x.shape[:-1], weight.shape[0]))


@_operator.register_fake
def _operator_fake(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("scalablevit::normed_linear", mutates_args=())
def _normed_operator(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    first_width: int,
) -> tuple[Tensor, Tensor]:
    """A linear layer after a norm, in the type of x: its first channels, so many, and the others."""
    kernel, norm = products_kernel(x, x.dtype, weight, bias, norm_weight, norm_bias), (norm_weight, norm_bias, eps)
    if kernel is None:
        read = normalise(x, *norm)[0]
        out = F.linear(read, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        return out[..., :first_width].contiguous(), out[..., first_width:].clone()
    parts = kernel.linear(_rows(x), weight, bias, norm=norm, first_columns=first_width)
    first, second = (part.view(*x.shape[:-1], part.shape[-1]) for part in parts)
    return first, second


@_normed_operator.register_fake
def _normed_operator_fake(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    first_width: int,
) -> tuple[Tensor, Tensor]:
    size = x.shape[:-1]
    return x.new_empty(*size, first_width), x.new_empty(*size, weight.shape[0] - first_width)


@torch.library.custom_op("scalablevit::linear_backward", mutates_args=())
def _backward_operator(
    grad: Tensor, x: Tensor | None, weight: Tensor | None, dtype: torch.dtype, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """For x in its type, and for weight and bias in `dtype`; an empty one where it is not needed.

    The first needs the weight, the second x: what is not needed need not be there.
    """
    grads = _rows(grad)
    grad_x, grad_weight, grad_bias = (grad.new_empty(0, dtype=kind) for kind in (None, dtype, dtype))
    if needs[0] and weight is not None:
        grad_x = product(grads, weight.to(grad.dtype)).view(*grad.shape[:-1], weight.shape[1])
    if needs[1] and x is not None:
        grad_weight = weight_gradient([grads], _rows(x)).to(dtype)
    if needs[2]:
        grad_bias = sum_of_rows(grads).to(dtype)
    return grad_x, grad_weight, grad_bias


@_backward_operator.register_fake
def _backward_operator_fake(
    grad: Tensor, x: Tensor | None, weight: Tensor | None, dtype: torch.dtype, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    out = grad.shape[-1]
    grad_x = grad.new_empty((*grad.shape[:-1], weight.shape[1]) if needs[0] and weight is not None else (0,))
    of_weight = (out, x.shape[-1]) if needs[1] and x is not None else (0,)
    return grad_x, grad.new_empty(of_weight, dtype=dtype), grad.new_empty(out if needs[2] else 0, dtype=dtype)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, *_ = inputs
    needs_x, needs_weight, *_ = ctx.needs_input_grad
    ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
    ctx.dtype = weight.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *needs, needs_residual = ctx.needs_input_grad
    found = _backward_operator(grad, *ctx.saved_tensors, ctx.dtype, needs)
    of_residual = grad if needs_residual else None
    return *(one if needed else None for one, needed in zip(found, needs, strict=True)), of_residual


_operator.register_autograd(_backward, setup_context=_save_for_backward)


def _rows(x: Tensor) -> Tensor:
    return in_memory(x).view(-1, x.shape[-1])
