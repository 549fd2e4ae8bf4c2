"""Dropout as one step with the sum behind it, whose mask is computed again in the backward pass instead of kept.

Axes: b batch, h height, w width, c channels. For where PyTorch runs eagerly on a CPU. PyTorch's own dropout draws a
number one by one, and keeps a factor for each element, which takes longer than the products around it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scalablevit.kernels.cpu.rows import drop
from scalablevit.kernels.dropout import Dropout
from scalablevit.kernels.recording import in_memory, is_batched
from scalablevit.kernels.selection import rows_kernel
from scalablevit.recomputation import is_recorded, may_recompute


def probability_of(dropout: nn.Dropout) -> float:
    """That the module zeroes an element now."""
    return dropout.p if dropout.training else 0.0


def can_drop(x: Tensor, dtype: torch.dtype, probability: float) -> bool:
    """Whether a kernel drops from maps that lie as x does, in numbers of `dtype`."""
    return 0.0 < probability < 1.0 and rows_kernel(x, dtype) is not None


def add_dropped(residual: Tensor | None, x: Tensor, probability: float) -> Tensor | None:
    """``residual + dropout(x)``, without the sum where there is no residual stream; None where no kernel serves.

    Args:
        residual: (b, h, w, c).
        x: (b, h, w, c).
        probability: That an element of x is zeroed.

    Returns:
        (b, h, w, c).
    """
    if not may_recompute(x) or not can_drop(x, x.dtype, probability):
        return None
    if residual is not None and (residual.shape != x.shape or not can_drop(residual, x.dtype, probability)):
        return None
    dropout = Dropout.drawn(probability)
    if is_recorded(residual, x):
        out: Tensor = _AddDropped.apply(dropout, residual, x)
        return out
    return _drop(x, dropout, residual)


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dropout: Dropout, residual: Tensor | None, x: Tensor) -> Tensor:
        ctx.dropout = dropout
        return _drop(x, dropout, residual)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        _, needs_residual, needs_x = ctx.needs_input_grad
        grad_x = None
        if needs_x and (torch.is_grad_enabled() or is_batched(grad) or torch._C._len_torch_dispatch_stack()):
            grad_x = ctx.dropout.applied_to(grad)
        elif needs_x:
            grad_x = _drop(in_memory(grad), ctx.dropout)
        return None, grad if needs_residual else None, grad_x


def _drop(x: Tensor, dropout: Dropout, residual: Tensor | None = None) -> Tensor:
    rows = x.view(-1, x.shape[-1])
    return drop(rows, dropout, None if residual is None else residual.view(rows.shape)).view(x.shape)
