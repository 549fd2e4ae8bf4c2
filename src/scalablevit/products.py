"""Products of matrices on the tiles of processors that have them, and by PyTorch elsewhere.

Axes: rows are positions, c channels. For where PyTorch runs eagerly.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from scalablevit.kernels.recording import is_batched
from scalablevit.kernels.selection import products_kernel


def product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` of two matrices of one type, where nothing is recorded."""
    kernel = None if left.dtype != right.dtype or type(right) is not Tensor else products_kernel(left, left.dtype)
    return left @ right if kernel is None else cast(Tensor, kernel.multiply(left, right))


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right`` for a total of the type of both, or in float32."""
    kernel = None if left.dtype != right.dtype or type(right) is not Tensor else products_kernel(left, left.dtype)
    if kernel is not None:
        kernel.multiply(left, right, total, adds=True)
    elif total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def linear_on_tiles(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """``x @ weight^T + bias``, (..., c) to (..., c'), as autocast has it; None where no kernel serves."""
    if x.device.type != "cpu" or x.shape[-1:] != weight.shape[1:]:
        return None  # PyTorch says what is wrong
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if dtype == x.dtype and weight.dtype != dtype and not torch.is_autocast_enabled("cpu"):
        return None
    rows = x.reshape(-1, x.shape[-1])
    kernel = products_kernel(rows, dtype, weight, bias)
    if kernel is None or not rows.is_contiguous():
        return None
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (x, weight, bias)):
        out: Tensor = _Linear.apply(kernel, rows, weight, bias)
    else:
        out = kernel.linear(rows, weight, bias)[0]
    return out.view(*x.shape[:-1], weight.shape[0])


class _Linear(torch.autograd.Function):
    """A linear layer that keeps what it reads."""

    @staticmethod
    def forward(ctx: Any, kernel: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.kernel, ctx.bias_dtype = kernel, None if bias is None else bias.dtype
        return cast(Tensor, kernel.linear(rows, weight, bias)[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        _, needs_rows, needs_weight, needs_bias = ctx.needs_input_grad
        if torch.is_grad_enabled() or is_batched(grad):  # in operations that are differentiable again
            grad_rows = grad @ weight.to(grad.dtype) if needs_rows else None
            grad_weight = (grad.mT @ rows).to(weight.dtype) if needs_weight else None
        else:
            grad_rows = product(grad, weight.detach().to(grad.dtype)) if needs_rows else None
            grad_weight = weight.new_empty(weight.shape) if needs_weight else None
            if grad_weight is not None:
                ctx.kernel.multiply(grad.t(), rows, grad_weight)
        return None, grad_rows, grad_weight, grad.sum(-2).to(ctx.bias_dtype) if needs_bias else None
