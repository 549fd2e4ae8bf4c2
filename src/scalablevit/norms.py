"""LayerNorm over the channels, by kernels of our own where PyTorch runs eagerly on a CPU.

Axes: c channels.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn

from scalablevit.kernels.recording import is_batched
from scalablevit.kernels.selection import norm_kernel
from scalablevit.recomputation import (
    differentiable_gradients,
    is_recorded,
    may_recompute,
    norm_gradients,
    norm_of,
    normalise,
)


def normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """``norm(x)``, (..., c), for a plain norm over the channels."""
    parameters = norm_of(norm)
    if parameters is None or norm.weight.dtype != norm.bias.dtype or not may_recompute(x):
        return cast(Tensor, norm(x))
    weight, bias, eps = parameters
    kernel = norm_kernel(x, weight, bias)
    if kernel is None:
        return cast(Tensor, norm(x))
    if is_recorded(x, weight, bias):
        return cast(Tensor, _Norm.apply(eps, x, weight, bias))
    return cast(Tensor, kernel.normalise(x, weight, bias, eps))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, eps: float, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out, mean, rstd = normalise(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() or is_batched(grad):
            plain = functools.partial(_plainly, ctx.eps)
            return None, *differentiable_gradients(plain, (x, weight, bias), grad, needs)
        return None, *norm_gradients([grad], x, mean, rstd, weight, bias, needs)


def _plainly(eps: float, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The norm in operations that autograd records."""
    return normalise(x, weight, bias, eps)[0]
