"""Linear layers as operators of compiled graphs, with gradients: our products where the compiler would call PyTorch's.

Axes: c channels that come in, f that go out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from scalablevit.kernels.recording import in_memory
from scalablevit.kernels.selection import multiplies_any_rows, products_kernel
from scalablevit.kernels.switches import autocast_dtype
from scalablevit.products import product, sum_of_rows, weight_gradient
from scalablevit.recomputation import are_plain, may_be_transformed, product_dtype


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
    if x.device.type != "cpu" or weight.ndim != 2 or x.shape[-1:] != weight.shape[1:]:
        return None  # PyTorch says what is wrong
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    dtype = autocast_dtype() or x.dtype
    if not multiplies_any_rows(x.device, dtype) or product_dtype(x, None, (weight, bias)) != dtype:
        return None
    if may_be_transformed() or not are_plain((weight, bias)) or (bias is not None and bias.dtype != weight.dtype):
        return None
    adds = residual is not None and residual.dtype == dtype and residual.shape[:-1] == x.shape[:-1]
    out = cast(Tensor, _operator(x.to(dtype), weight, bias, residual if adds else None))
    return out if adds or residual is None else residual + out


@torch.library.custom_op("scalablevit::linear", mutates_args=())
def _operator(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """In the type of x."""
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


@torch.library.custom_op("scalablevit::linear_backward", mutates_args=())
def _backward_operator(grad: Tensor, x: Tensor, weight: Tensor, needs: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """For x in its type, and for weight and bias in the type of the weight; an empty one where it is not needed."""
    grads, rows = _rows(grad), _rows(x)
    grad_x = product(grads, weight.to(grad.dtype)).view(x.shape) if needs[0] else x.new_empty(0)
    grad_weight = weight_gradient([grads], rows).to(weight.dtype) if needs[1] else weight.new_empty(0)
    grad_bias = sum_of_rows(grads).to(weight.dtype) if needs[2] else weight.new_empty(0)
    return grad_x, grad_weight, grad_bias


@_backward_operator.register_fake
def _backward_operator_fake(
    grad: Tensor, x: Tensor, weight: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if needs[0] else (0,)),
        weight.new_empty(weight.shape if needs[1] else (0,)),
        weight.new_empty(weight.shape[:1] if needs[2] else (0,)),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, *_ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:3])
    found = _backward_operator(grad, *ctx.saved_tensors, needs)
    of_residual = grad if ctx.needs_input_grad[3] else None
    return *(one if needed else None for one, needed in zip(found, needs, strict=True)), of_residual


_operator.register_autograd(_backward, setup_context=_save_for_backward)


def _rows(x: Tensor) -> Tensor:
    return in_memory(x).view(-1, x.shape[-1])
