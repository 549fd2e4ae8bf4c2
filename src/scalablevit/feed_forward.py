"""The feed-forward block, with a function of its own where PyTorch runs eagerly.

Axes: b batch, h height, w width, c channels, f channels of the hidden layer.

The hidden layer is the widest activation of the network, and moving it through memory costs about as much as the
products around it. So on a CPU both passes go slice by slice over the positions, and use up each slice of the hidden
layer while it is in the cache. The backward pass computes the norm again, and where it is narrow the hidden layer, too:
then the one activation that is kept is what the norm reads, which is kept anyway.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalablevit.dot_product import is_eager
from scalablevit.dropping import can_drop, probability_of
from scalablevit.kernels.cpu import rows as native_rows
from scalablevit.kernels.dropout import NO_DROPOUT, Dropout
from scalablevit.kernels.parts import Norm
from scalablevit.kernels.recording import is_batched
from scalablevit.kernels.selection import feed_forward_gradients_kernel, is_wanted, products_kernel, rows_kernel
from scalablevit.layers import Branch, Linear, is_plain
from scalablevit.products import product
from scalablevit.recomputation import (
    Total,
    differentiable_gradients,
    is_recorded,
    may_recompute,
    norm_gradients,
    norm_of,
    normalise,
    product_dtype,
    without_autocast,
)

# From so many channels, and so many rows, on the hidden layer is kept, before its GELU. What it takes to compute an
# element again grows with the channels; up to 128 it is nearly free beside the trips through memory, see docs/log.md.
# On CPUs alone, where it was measured.
_KEPT_FROM = 256
_SLICE_BYTES = 4 * 2**20  # of the hidden layer; measured against 1, 2 and 8 MiB, see docs/log.md


class FeedForward(Branch):
    """Two linear layers with an exact GELU between them, at each position alone. Maps (b, h, w, dim) to the same.

    Args:
        dim: Channels.
        expansion_factor: How many times wider the hidden layer is.
        dropout: Probability that an element is zeroed, in training, after the GELU and after the second layer.
    """

    def __init__(
        self,
        dim: int,
        *,
        expansion_factor: int = 4,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.fc1 = Linear(dim, dim * expansion_factor, device=device, dtype=dtype)
        self.fc2 = Linear(dim * expansion_factor, dim, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._apply_layers(x)
        else:
            if is_eager(x) and self._is_fusible(x, None):
                return self._apply_fused(x, None)
            return self._apply_layers(x)

    def forward_after(self, norm: nn.LayerNorm, x: Tensor, *, residual: bool) -> Tensor:
        parameters = norm_of(norm)
        if parameters is None or not self._is_fusible(x, parameters):
            out = self(norm(x))
        elif residual and x.is_contiguous():  # a sum is laid out as x is, what the function gives is contiguous
            return self._apply_fused(x, parameters, residual=True)
        else:
            out = self._apply_fused(x, parameters)
        return x + out if residual else out

    def _apply_layers(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))

    def _apply_fused(self, x: Tensor, norm: Norm | None, *, residual: bool = False) -> Tensor:
        layers = self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
        return feed_forward(x, *layers, norm=norm, residual=residual, dropout=probability_of(self.dropout))

    def compiled_after(self, norm: nn.LayerNorm, x: Tensor) -> Tensor | None:
        """The feed-forward of norm(x), plus x, as one operator, where compiled graphs had better call it as a whole.

        That is on a CPU, without a backward pass: what the compiler makes of the layers goes through memory between
        them.
        """
        if x.device.type != "cpu" or not is_wanted(x.device) or probability_of(self.dropout) > 0.0:
            return None
        if not self._is_plain() or self.fc1.bias is None or self.fc2.bias is None:
            return None
        if norm.weight is None or norm.bias is None or is_recorded(x, *norm.parameters(), *self.parameters()):
            return None
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        layers = self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
        return _operator(x, norm.weight, norm.bias, *layers, norm.eps, dtype)

    def _is_fusible(self, x: Tensor, norm: Norm | None) -> bool:
        """Whether the layers are just what they were made as, and of one type, or of types that autocast mixes."""
        if not may_recompute(x) or not self._is_plain() or self.fc1.bias is None or self.fc2.bias is None:
            return False
        parameters = self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
        if not _fit(x, norm, parameters):
            return False  # PyTorch's layers say what is wrong
        dtype, probability = product_dtype(x, norm, parameters), probability_of(self.dropout)
        return dtype is not None and (probability == 0.0 or can_drop(x, dtype, probability))

    def _is_plain(self) -> bool:
        return is_plain(self.fc1) and is_plain(self.fc2) and is_plain(self.dropout, nn.Dropout)


def feed_forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    norm: Norm | None = None,
    residual: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """dropout(linear(dropout(gelu(linear(norm(x)))))), which autograd records as one step.

    Args:
        x: (..., c).
        weight1: (f, c).
        bias1: (f).
        weight2: (c, f).
        bias2: (c).
        norm: The norm that x goes through first; None for none.
        residual: Whether x is added to the result.
        dropout: Probability that an element is zeroed; above 0 only where one `can_drop`.

    Returns:
        (..., c).
    """
    dtype = product_dtype(x, norm, (weight1, bias1, weight2, bias2))
    assert dtype is not None
    norm_weight, norm_bias, eps = (None, None, 0.0) if norm is None else norm
    settings = Settings(dtype, eps, residual, Dropout.drawn(dropout))
    arguments = x, norm_weight, norm_bias, weight1, bias1, weight2, bias2
    if is_recorded(*arguments):
        out: Tensor = _FeedForward.apply(settings, *arguments)
        return out
    with without_autocast(x):
        return _forward(settings, *arguments, kept=None)


@torch.library.custom_op("scalablevit::feed_forward", mutates_args=())
def _operator(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """`feed_forward` after a norm, plus x, for compiled graphs; products are of `dtype`."""
    x = x.contiguous()
    arguments = x, norm_weight, norm_bias, weight1, bias1, weight2, bias2
    return _forward(Settings(dtype, eps, residual=True), *arguments, kept=None)


@_operator.register_fake
def _operator_fake(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, dtype))


class Settings(NamedTuple):
    dtype: torch.dtype  # of the products
    eps: float  # of the norm
    residual: bool
    dropout: Dropout = NO_DROPOUT  # of the hidden layer; `another` one of the result


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Settings, x: Tensor, *others: Any) -> Tensor:
        ctx.settings = settings
        width, hidden, kept = x.shape[-1], others[2].shape[0], None
        *needs_hidden, _ = ctx.needs_input_grad[1:]  # all gradients but that of the last bias
        wide = x.device.type == "cpu" and width >= _KEPT_FROM and x.numel() >= _KEPT_FROM * width
        if wide and any(needs_hidden):
            kept = x.new_empty(x.numel() // width, hidden, dtype=settings.dtype)
        ctx.save_for_backward(kept, x, *others)
        with without_autocast(x):
            return _forward(settings, x, *others, kept=kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (kept, *arguments), needs = ctx.saved_tensors, ctx.needs_input_grad[1:]
        with without_autocast(grad):
            if torch.is_grad_enabled() or is_batched(grad):
                plain = functools.partial(_plain, ctx.settings)
                return None, *differentiable_gradients(plain, arguments, grad, needs)
            return None, *_gradients(grad, ctx.settings, *arguments, kept=kept, needs=needs)


def _plain(
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


def _forward(
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


def _fit(x: Tensor, norm: Norm | None, parameters: Sequence[Tensor]) -> bool:
    """Whether sizes are those of a feed-forward."""
    weight1, bias1, weight2, bias2 = parameters
    hidden, width = bias1.shape, x.shape[-1:]
    if weight1.shape != (*hidden, *width) or weight2.shape != (*width, *hidden) or bias2.shape != width:
        return False
    return norm is None or norm.weight.shape == norm.bias.shape == width


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


def _gradients(
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
            grad_out = grad_out.resolve_neg().contiguous()
            grad_out = native_rows.drop(grad_out, settings.dropout.another(), first_row=part.start)
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
        of_norm = norm_gradients(grad_read, rows[part], mean, rstd, norm_weight, norm_bias, needs[:3])
        norm_weight_total.add(of_norm[1])
        norm_bias_total.add(of_norm[2])
        if grad_x is not None and of_norm[0] is not None:
            if settings.residual:
                torch.add(of_norm[0], grad_rows[part], out=grad_x[part])
            else:
                grad_x[part] = of_norm[0]
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
    grad_out = grad_rows.to(settings.dtype).resolve_neg().contiguous()
    weight1, bias1, weight2, _ = parameters
    kernel = feed_forward_gradients_kernel(grad_out, *parameters, hidden=weight1.shape[0])
    if kernel is None or weight1.dtype != weight2.dtype or rows.shape[0] == 0:
        return None
    if settings.dropout.probability > 0.0:
        grad_out = native_rows.drop(grad_out, settings.dropout.another())
    normed, mean, rstd = normalise(rows, norm_weight, norm_bias, settings.eps)
    read, layers = normed.to(settings.dtype).contiguous(), (weight1, bias1, weight2)
    grad_read, *found = kernel.differentiate_feed_forward(grad_out, read, layers, kept=kept, dropout=settings.dropout)
    found.append(grad_out.sum(0, dtype=torch.promote_types(grad_out.dtype, torch.float32)))
    of_norm = norm_gradients(grad_read, rows, mean, rstd, norm_weight, norm_bias, needs[:3])
    grad_x = of_norm[0]
    if grad_x is not None:
        grad_x = (grad_x + grad_rows if settings.residual else grad_x).view(x.shape)
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
