"""The two passes of a feed-forward, slice by slice or by one kernel: what its autograd function runs.

Axes: rows positions, c channels, f channels of the hidden layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from scalablevit.kernels.cpu import rows as native_rows
from scalablevit.kernels.cpu.calls import BlockCall
from scalablevit.kernels.dropout import NO_DROPOUT, Dropout
from scalablevit.kernels.parts import Norm
from scalablevit.kernels.recording import in_memory
from scalablevit.kernels.remembered import remembered
from scalablevit.kernels.selection import feed_forward_gradients_kernel, is_readable, products_kernel, rows_kernel
from scalablevit.products import product, sum_of_rows
from scalablevit.recomputation import Total, norm_gradients, normalise, product_dtype

_SLICE_BYTES = 4 * 2**20  # of the hidden layer; measured against 1, 2 and 8 MiB, see docs/log.md


class Settings(NamedTuple):
    dtype: torch.dtype  # of the products
    eps: float  # of the norm
    residual: bool
    dropout: Dropout = NO_DROPOUT  # of the hidden layer; `another` one of the result


def run_plainly(
    settings: Settings,
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    *parameters: Tensor,
) -> Tensor:
    """The step in operations that autograd records."""
    weight1, bias1, weight2, bias2 = (parameter.to(settings.dtype) for parameter in parameters)
    read = normalise(x, norm_weight, norm_bias, settings.eps)[0].to(settings.dtype)
    dropout = settings.dropout
    hidden = dropout.applied_to(F.gelu(F.linear(read, weight1, bias1)))
    out = dropout.another().applied_to(F.linear(hidden, weight2, bias2))
    return x + out if settings.residual else out


def run_natively(
    x: Tensor, norm: Norm | None, layers: Sequence[Tensor | None], dtype: torch.dtype | None, *, residual: bool
) -> Tensor | None:
    """A feed-forward without dropout and autograd by one kernel; None where none takes these sizes and types.

    Products are of `dtype`; without one, as autocast has them.
    """
    if not is_readable(x) or not x.is_contiguous():
        return None
    norm_weight, norm_bias, eps = (None, None, 0.0) if norm is None else norm
    tensors = norm_weight, norm_bias, *layers
    case = x.shape, x.dtype, dtype, residual, eps

    run = remembered(case, tensors, lambda: feed_forward_call(x, norm, layers, dtype, residual=residual))
    return None if run is None else run(x, tensors)


def feed_forward_call(
    x: Tensor, norm: Norm | None, layers: Sequence[Tensor | None], dtype: torch.dtype | None, *, residual: bool
) -> BlockCall | None:
    """The kernel's call for maps such as x; None where there is none.

    Products are of `dtype`; without one, as autocast has them.
    """
    if not fit(x, norm, layers) or len({one.dtype for one in layers[::2] if one is not None}) > 1:
        return None
    norm_weight, norm_bias, eps = (None, None, 0.0) if norm is None else norm
    tensors = norm_weight, norm_bias, *layers
    found = product_dtype(x, norm, layers) if dtype is None else dtype
    kernel = None if found is None else products_kernel(x, found, *tensors)
    if kernel is None:
        return None
    return cast(BlockCall, kernel.feed_forward_call(x, tensors, eps, residual=residual))


def run_unrecorded(
    x: Tensor, norm: Norm, layers: Sequence[Tensor | None], dtype: torch.dtype, *, residual: bool = True
) -> Tensor:
    """A feed-forward without dropout, of which nothing is recorded: by a kernel or slice by slice.

    The layers are weight and bias of the one, then of the other.
    """
    x = x.contiguous()
    out = run_natively(x, norm, layers, dtype, residual=residual)
    if out is not None:
        return out
    weight1, bias1, weight2, bias2 = cast(Sequence[Tensor], layers)
    of_layers = weight1, bias1, weight2, bias2
    return run_forward(Settings(dtype, norm.eps, residual), x, norm.weight, norm.bias, *of_layers, kept=None)


def fit(x: Tensor, norm: Norm | None, parameters: Sequence[Tensor | None]) -> bool:
    """Whether all are there, and of the sizes of a feed-forward."""
    weight1, bias1, weight2, bias2 = parameters
    if weight1 is None or bias1 is None or weight2 is None or bias2 is None:
        return False
    hidden, width = bias1.shape, x.shape[-1:]
    if weight1.shape != (*hidden, *width) or weight2.shape != (*width, *hidden) or bias2.shape != width:
        return False
    return norm is None or norm.weight.shape == norm.bias.shape == width


def run_forward(
    settings: Settings,
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    *parameters: Tensor,
    kept: Tensor | None,
) -> Tensor:
    """The step; what the first layer gives goes to `kept`, (rows, f), if that is there."""
    rows = x.reshape(-1, x.shape[-1])
    dtype = torch.promote_types(x.dtype, settings.dtype) if settings.residual else settings.dtype
    width = parameters[2].shape[0]
    out = x.new_empty(*x.shape[:-1], width, dtype=dtype)  # no view of another: hooks may change it in place
    out_rows = out.view(-1, width)
    alike = parameters[0].dtype == parameters[2].dtype
    products = products_kernel(rows, settings.dtype, *parameters) if alike else None
    if products is not None and rows.is_contiguous():
        before = None if norm_weight is None else (norm_weight, norm_bias, settings.eps)
        residual, dropout = settings.residual, settings.dropout
        products.feed_forward(rows, before, parameters, out_rows, residual=residual, dropout=dropout, kept=kept)
        return out
    weight1, bias1, weight2, bias2 = (parameter.to(settings.dtype) for parameter in parameters)
    kernel = rows_kernel(rows, settings.dtype)
    assert kernel is not None or settings.dropout.probability == 0.0
    for part in _slices(rows, width=weight1.shape[0], dtype=settings.dtype):
        if kernel is not None:
            biases = parameters[1], parameters[3]
            norm = norm_weight, norm_bias
            _forward_natively(kernel, settings, rows, part, norm, (weight1, weight2), biases, out_rows[part], kept)
            continue
        read = normalise(rows[part], norm_weight, norm_bias, settings.eps)[0].to(settings.dtype)
        if kept is None:
            activated = torch.ops.aten.gelu_(_linear(read, weight1, bias1))
        else:
            activated = F.gelu(_linear(read, weight1, bias1, out=kept[part]))
        if dtype == settings.dtype:
            _linear(activated, weight2, bias2, out=out_rows[part])
        else:
            out_rows[part] = _linear(activated, weight2, bias2)
        if settings.residual:
            out_rows[part].add_(rows[part])
    return out


def _forward_natively(
    kernel: Any,
    settings: Settings,
    all_rows: Tensor,
    part: slice,
    norm: tuple[Tensor | None, Tensor | None],
    weights: tuple[Tensor, Tensor],
    biases: tuple[Tensor, Tensor],
    out: Tensor,
    kept: Tensor | None,
) -> None:
    """The same for one slice, with all that is not a product in passes of our own: about half as many."""
    rows, dropout = all_rows[part], settings.dropout
    read = rows if norm[0] is None else kernel.normalise(rows, *norm, settings.eps)
    hidden = torch.mm(read, weights[0].t(), out=None if kept is None else kept[part])
    activated = hidden if kept is None else torch.empty_like(hidden)
    kernel.add_bias_gelu_(hidden, biases[0], dropout, part.start, out=activated)
    torch.mm(activated, weights[1].t(), out=out)
    kernel.add_bias_residual_(out, biases[1], rows if settings.residual else None, dropout.another(), part.start)


def gradients(
    grad: Tensor,
    settings: Settings,
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    *parameters: Tensor,
    kept: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    found = _gradients_at_once(grad, settings, x, norm_weight, norm_bias, *parameters, kept=kept, needs=needs)
    if found is not None:
        return found
    weight1, bias1, weight2, _ = (parameter.to(settings.dtype) for parameter in parameters)
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    grad_x = torch.empty_like(rows) if needs[0] else None
    totals = [
        Total(tensor, needed) for tensor, needed in zip((norm_weight, norm_bias, *parameters), needs[1:], strict=True)
    ]
    norm_weight_total, norm_bias_total, weight1_total, bias1_total, weight2_total, bias2_total = totals
    drops = settings.dropout.probability > 0.0
    kernel = native_rows if drops else rows_kernel(rows, settings.dtype)
    for part in _slices(rows, width=weight1.shape[0], dtype=settings.dtype):
        normed, mean, rstd = normalise(rows[part], norm_weight, norm_bias, settings.eps)
        read = normed.to(settings.dtype)
        grad_out = grad_rows[part].to(settings.dtype)
        if drops:
            grad_out = native_rows.drop(in_memory(grad_out), settings.dropout.another(), first_row=part.start)
        bias2_total.add_rows(grad_out)
        grad_hidden = product(grad_out, weight2)
        if kernel is not None:
            if kept is None:
                hidden, bias, activated = product(read, weight1.t()), parameters[1], None
            else:
                hidden, bias, activated = kept[part], None, torch.empty_like(grad_hidden)
            dropping = settings.dropout, part.start
            activated = kernel.differentiate_gelu_(grad_hidden, hidden, bias, *dropping, out=activated)
        else:
            hidden = _linear(read, weight1, bias1) if kept is None else kept[part]
            activated = F.gelu(hidden)
            torch.ops.aten.gelu_backward.grad_input(grad_hidden, hidden, grad_input=grad_hidden)
        weight2_total.add_product(grad_out, activated)
        if not any(needs[:5]):
            continue
        bias1_total.add_rows(grad_hidden)
        weight1_total.add_product(grad_hidden, read)
        if not any(needs[:3]):
            continue
        grad_read = product(grad_hidden, weight1)
        stream = grad_rows[part] if settings.residual else None
        norm, moments, to = (norm_weight, norm_bias), (mean, rstd), None if grad_x is None else grad_x[part]
        of_norm = norm_gradients([grad_read], rows[part], *moments, *norm, needs[:3], residual=stream, out=to)
        norm_weight_total.add(of_norm[1])
        norm_bias_total.add(of_norm[2])
    return None if grad_x is None else grad_x.view(x.shape), *(total.result() for total in totals)


def _gradients_at_once(
    grad: Tensor,
    settings: Settings,
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    *parameters: Tensor,
    kept: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...] | None:
    """The same by one kernel for what lies between norm and dropout; None where there is none."""
    if not (any(needs[:3]) and all(needs[3:6])):
        return None
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    grad_out = in_memory(grad_rows.to(settings.dtype))
    weight1, bias1, weight2, _ = parameters
    kernel = feed_forward_gradients_kernel(grad_out, *parameters, hidden=weight1.shape[0])
    if kernel is None or weight1.dtype != weight2.dtype or rows.shape[0] == 0:
        return None
    if settings.dropout.probability > 0.0:
        grad_out = native_rows.drop(grad_out, settings.dropout.another())
    normed, mean, rstd = normalise(rows, norm_weight, norm_bias, settings.eps)
    read, layers = in_memory(normed.to(settings.dtype)), (weight1, bias1, weight2)
    grad_read, *found = kernel.differentiate_feed_forward(grad_out, read, layers, kept=kept, dropout=settings.dropout)
    found.append(sum_of_rows(grad_out))
    stream = grad_rows if settings.residual else None
    of_norm = norm_gradients([grad_read], rows, mean, rstd, norm_weight, norm_bias, needs[:3], residual=stream)
    grad_x = None if of_norm[0] is None else of_norm[0].to(x.dtype).view(x.shape)
    of_parameters = (
        one.to(parameter.dtype) if needed else None
        for one, parameter, needed in zip(found, parameters, needs[3:], strict=True)
    )
    return grad_x, *of_norm[1:], *of_parameters


def _linear(rows: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    if rows.device.type == "cpu" and rows.dtype == torch.float32:  # see layers.Linear
        return torch.mm(rows, weight.t(), out=out).add_(bias)
    return torch.addmm(bias, rows, weight.t(), out=out)


def _slices(rows: Tensor, width: int, dtype: torch.dtype) -> list[slice]:
    """Slices of the rows, on a CPU so long that `width` channels of one are about `_SLICE_BYTES`."""
    count = max(rows.shape[0], 1)
    most = max(1, _SLICE_BYTES // (width * dtype.itemsize)) if rows.device.type == "cpu" else count
    length = math.ceil(count / math.ceil(count / most))  # all of about one length
    return [slice(start, start + length) for start in range(0, count, length)]
