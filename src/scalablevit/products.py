"""Products of matrices by kernels of our own where those are faster, and by PyTorch elsewhere.

Axes: rows are positions, c channels. For where PyTorch runs eagerly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from scalablevit.kernels.recording import is_batched
from scalablevit.kernels.selection import matrices_kernel, products_kernel, rows_kernel
from scalablevit.kernels.switches import autocast_dtype


def product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` of two matrices of one type."""
    kernel = _kernel_for(left, right)
    return left @ right if kernel is None else cast(Tensor, kernel.multiply(left, right))


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right`` for a total of the type of both, or in float32."""
    kernel = _kernel_for(left, right, in_float32=total.dtype == torch.float32)
    if kernel is not None:
        kernel.multiply(left, right, total, adds=True)
    elif total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def weight_gradient(grads: Sequence[Tensor], rows: Tensor) -> Tensor:
    """The gradient for the weight of a linear layer, (f, c), in float32 or the type of what it is computed from.

    Args:
        grads: Of what the layer gave, (rows, f), or of its parts, side by side, which are f channels together.
        rows: What the layer read, (rows, c).
    """
    kernels = [_kernel_for(grad.mT, rows, in_float32=True) if grad.ndim == 2 else None for grad in grads]
    if len(grads) == 1 and kernels[0] is None:
        return grads[0].mT @ rows
    widths = [grad.shape[-1] for grad in grads]
    dtype = torch.promote_types(rows.dtype, torch.float32)  # so that no sum is rounded on the way
    out = rows.new_empty(sum(widths), rows.shape[-1], dtype=dtype)
    for grad, kernel, part in zip(grads, kernels, out.split(widths), strict=True):
        if kernel is None:
            part.copy_(grad.mT @ rows)
        else:
            kernel.multiply(grad.t(), rows, part)
    return out


def sum_of_rows(rows: Tensor) -> Tensor:
    """The sum of (rows, c) over the first axis, (c), in float32 or a wider type."""
    kernel = None
    if not is_batched(rows) and not (torch.is_grad_enabled() and rows.requires_grad):
        rows = rows.resolve_neg()
        kernel = rows_kernel(rows, rows.dtype)
    if kernel is None:
        return rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32))
    return cast(Tensor, kernel.sum_rows(rows))


def _kernel_for(left: Tensor, right: Tensor, *, in_float32: bool = False) -> Any:
    """What multiplies two matrices; None where nothing does, or autograd or a transform has to see it."""
    if left.dtype != right.dtype or left.device != right.device or left.shape[-1:] != right.shape[:1]:
        return None
    if right._is_zerotensor():  # zeros that PyTorch only notes; about the left side the selection asks
        return None
    if torch.is_grad_enabled() and (left.requires_grad or right.requires_grad):
        return None
    if is_batched(left) or is_batched(right) or type(right) not in (Tensor, torch.nn.Parameter):
        return None
    return matrices_kernel(left, right, in_float32=in_float32)


def linear_by_kernel(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor | None:
    """``x @ weight^T + bias``, (..., c) to (..., c'), as autocast has it, plus `residual`; None without a kernel."""
    if x.device.type != "cpu" or weight.ndim != 2 or x.shape[-1:] != weight.shape[1:] or weight.shape[1] == 0:
        return None  # PyTorch says what is wrong
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    dtype = autocast_dtype() or x.dtype
    if not torch.is_autocast_enabled("cpu") and any(one is not None and one.dtype != dtype for one in (weight, bias)):
        return None
    kernel = products_kernel(x, dtype, weight, bias)
    if kernel is None:
        return None
    size = *x.shape[:-1], weight.shape[0]
    if residual is not None:
        if residual.shape != size or residual.dtype != dtype or residual.is_neg() or type(residual) is not Tensor:
            return None
        if residual.device != x.device or not residual.is_contiguous():
            return None
        residual = residual.view(-1, weight.shape[0])
    rows = x.reshape(-1, x.shape[-1])
    if not rows.is_contiguous():
        rows = rows.contiguous()
    tensors = rows, weight, bias, residual
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors):
        out: Tensor = _Linear.apply(kernel, *tensors)
    else:
        out = kernel.linear(rows, weight, bias, residual=residual)[0]
    return out.view(size)


class _Linear(torch.autograd.Function):
    """A linear layer, plus a residual stream, that keeps what its gradients ask for."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        _, needs_rows, needs_weight, _, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if needs_weight else None, weight if needs_rows else None)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return cast(Tensor, kernel.linear(rows, weight, bias, residual=residual)[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        _, needs_rows, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad
        grad_rows = product(grad, weight.to(grad.dtype)) if needs_rows else None
        grad_weight = weight_gradient([grad], rows).to(weight_dtype) if needs_weight else None
        grad_bias = sum_of_rows(grad).to(bias_dtype) if needs_bias else None
        return None, grad_rows, grad_weight, grad_bias, grad if needs_residual else None
