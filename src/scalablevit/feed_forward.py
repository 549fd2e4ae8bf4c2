"""The feed-forward block, with a function of its own where PyTorch runs eagerly.

Axes: b batch, h height, w width, c channels, f channels of the hidden layer.

The hidden layer is the widest activation of the network, and moving it through memory costs about as much as the
products around it. So on a CPU both passes go slice by slice over the positions, and use up each slice of the hidden
layer while it is in the cache. The backward pass computes the norm again, and where it is narrow the hidden layer, too:
then the one activation that is kept is what the norm reads, which is kept anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalablevit.dot_product import is_eager
from scalablevit.dropping import can_drop, probability_of
from scalablevit.feed_forward_passes import (
    Settings,
    fit,
    gradients,
    run_forward,
    run_natively,
    run_plainly,
    run_unrecorded,
)
from scalablevit.kernels.dropout import Dropout
from scalablevit.kernels.parts import FeedForwardParts, Norm
from scalablevit.kernels.recording import is_batched
from scalablevit.kernels.selection import is_wanted, multiplies_in_graphs
from scalablevit.kernels.switches import autocast_dtype
from scalablevit.layers import Branch, Linear, child_of, is_plain, plain_layer, plain_norm
from scalablevit.recomputation import (
    are_plain,
    differentiable_gradients,
    is_recorded,
    may_be_transformed,
    may_recompute,
    norm_of,
    product_dtype,
    without_autocast,
)

# From so many channels, and so many rows, on the hidden layer is kept, before its GELU. What it takes to compute an
# element again grows with the channels; up to 128 it is nearly free beside the trips through memory, see docs/log.md.
# On CPUs alone, where it was measured.
_KEPT_FROM = 256


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
            out = self._apply_at_once(x, None, residual=False) if is_eager(x) else None
            return self._apply_layers(x) if out is None else out

    def forward_after(self, norm: nn.LayerNorm, x: Tensor, *, residual: bool) -> Tensor:
        parameters = plain_norm(norm)
        adds = residual and x.is_contiguous()  # a sum is laid out as x is, what comes at once is contiguous
        out = None if parameters is None else self._apply_at_once(x, parameters, residual=adds)
        if out is None:
            out, adds = self(norm(x)), False
        return x + out if residual and not adds else out

    def _apply_layers(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))

    def _apply_at_once(self, x: Tensor, norm: Norm | None, *, residual: bool) -> Tensor | None:
        """The feed-forward of norm(x), plus x if wanted, as one step of autograd.

        None where the layers are not just what they were made as, or of types that autocast does not mix.
        """
        fc1, fc2 = plain_layer(child_of(self, "fc1")), plain_layer(child_of(self, "fc2"))
        dropout = child_of(self, "dropout")
        if fc1 is None or fc2 is None or not is_plain(dropout, nn.Dropout) or not may_recompute(x):
            return None
        layers, probability = (*fc1, *fc2), probability_of(dropout)
        if not torch.is_grad_enabled() and probability == 0.0:
            out = run_natively(x, norm, layers, None, residual=residual)
            if out is not None:
                return out
        weight1, bias1, weight2, bias2 = layers
        if bias1 is None or bias2 is None or not fit(x, norm, layers):
            return None  # PyTorch's layers say what is wrong
        if not are_plain(layers if norm is None else (*layers, norm.weight, norm.bias)):
            return None  # other kinds of parameters, as quantised or distributed ones, have operations of their own
        dtype = product_dtype(x, norm, layers)
        if dtype is None or (probability > 0.0 and not can_drop(x, dtype, probability)):
            return None
        return feed_forward(
            x, weight1, bias1, weight2, bias2, norm=norm, dtype=dtype, residual=residual, dropout=probability
        )

    def compiled_after(self, norm: nn.LayerNorm, x: Tensor, *, residual: bool) -> Tensor | None:
        """The feed-forward of norm(x), plus x if wanted, as one operator, where that is faster.

        That is on a CPU: what the compiler makes of the layers goes through memory between them. Where a backward pass
        will come, it is where our products are faster than the compiler's.
        """
        if x.device.type != "cpu" or not is_wanted(x.device) or probability_of(self.dropout) > 0.0:
            return None
        if not self._is_plain() or self.fc1.bias is None or self.fc2.bias is None:
            return None
        dtype = autocast_dtype() or x.dtype
        layers = self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
        before = norm_of(norm)
        if before is None or not fit(x, before, layers) or product_dtype(x, before, layers) != dtype:
            return None  # PyTorch's layers say what is wrong
        tensors = before.weight, before.bias, *layers
        if may_be_transformed() or not are_plain((x, *tensors)):
            return None
        settings = before.eps, dtype, residual
        if not is_recorded(x, *tensors):
            return cast(Tensor, _operator(x, *tensors, *settings))
        if x.dtype != dtype or not multiplies_in_graphs(x.device, dtype, recorded=True):
            return None
        keeps = any(one.requires_grad for one in (x, *tensors[:-1]))  # all gradients but that of the last bias need it
        return cast(Tensor, _recorded_operator(x, *tensors, *settings, keeps)[0])

    def parts_after(self, norm: nn.LayerNorm) -> FeedForwardParts | None:
        before, dropout = plain_norm(norm), child_of(self, "dropout")
        fc1, fc2 = plain_layer(child_of(self, "fc1")), plain_layer(child_of(self, "fc2"))
        if before is None or fc1 is None or fc2 is None or fc1.bias is None or fc2.bias is None:
            return None
        is_off = is_plain(dropout, nn.Dropout) and probability_of(dropout) == 0.0
        return FeedForwardParts(before, fc1, fc2) if is_off else None

    def _is_plain(self) -> bool:
        return is_plain(self.fc1) and is_plain(self.fc2) and is_plain(self.dropout, nn.Dropout)


def feed_forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    norm: Norm | None,
    dtype: torch.dtype,
    residual: bool,
    dropout: float,
) -> Tensor:
    """dropout(linear(dropout(gelu(linear(norm(x)))))), which autograd records as one step.

    Args:
        x: (..., c).
        weight1: (f, c).
        bias1: (f).
        weight2: (c, f).
        bias2: (c).
        norm: The norm that x goes through first; None for none.
        dtype: In which the layers multiply: the `product_dtype`.
        residual: Whether x is added to the result.
        dropout: Probability that an element is zeroed; above 0 only where one `can_drop`.

    Returns:
        (..., c).
    """
    norm_weight, norm_bias, eps = (None, None, 0.0) if norm is None else norm
    settings = Settings(dtype, eps, residual, Dropout.drawn(dropout))
    arguments = x, norm_weight, norm_bias, weight1, bias1, weight2, bias2
    if is_recorded(*arguments):
        out: Tensor = _FeedForward.apply(settings, *arguments)
        return out
    with without_autocast(x):
        return run_forward(settings, *arguments, kept=None)


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
    residual: bool,
) -> Tensor:
    """`feed_forward` after a norm, for compiled graphs without a backward pass; products are of `dtype`."""
    layers = weight1, bias1, weight2, bias2
    return run_unrecorded(x, Norm(norm_weight, norm_bias, eps), layers, dtype, residual=residual)


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
    residual: bool,
) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, dtype) if residual else dtype)


@torch.library.custom_op("scalablevit::recorded_feed_forward", mutates_args=())
def _recorded_operator(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    eps: float,
    dtype: torch.dtype,
    residual: bool,
    keeps: bool,
) -> tuple[Tensor, Tensor]:
    """`feed_forward` after a norm, for compiled graphs with a backward pass, and rows of the hidden layer for that.

    These are kept if that is wanted and worthwhile; else they are empty.
    """
    x, layers = x.contiguous(), (weight1, bias1, weight2, bias2)
    kept = x.new_empty(x.numel() // x.shape[-1], _width_kept(weight1, keeps), dtype=dtype)
    settings, to = Settings(dtype, eps, residual), kept if kept.shape[1] > 0 else None
    with without_autocast(x):
        return run_forward(settings, x, norm_weight, norm_bias, *layers, kept=to), kept


@_recorded_operator.register_fake
def _recorded_operator_fake(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    eps: float,
    dtype: torch.dtype,
    residual: bool,
    keeps: bool,
) -> tuple[Tensor, Tensor]:
    out = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, dtype) if residual else dtype)
    return out, x.new_empty(x.numel() // x.shape[-1], _width_kept(weight1, keeps), dtype=dtype)


def _width_kept(weight1: Tensor, keeps: bool) -> int:
    """Channels of the hidden layer that are kept: all or none."""
    return weight1.shape[0] if keeps and weight1.shape[1] >= _KEPT_FROM else 0


@torch.library.custom_op("scalablevit::feed_forward_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    kept: Tensor,
    tensors: Sequence[Tensor],
    eps: float,
    dtype: torch.dtype,
    residual: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients for all tensors that the operator was given; an empty one where it is not needed."""
    x, *parameters = tensors
    settings, hidden = Settings(dtype, eps, residual), kept if kept.shape[1] > 0 else None
    with without_autocast(grad):
        found = gradients(grad, settings, x.contiguous(), *parameters, kept=hidden, needs=needs)
    return [
        like.new_empty(0) if one is None or not needed else one
        for one, like, needed in zip(found, tensors, needs, strict=True)
    ]


@_backward_operator.register_fake
def _backward_operator_fake(
    grad: Tensor,
    kept: Tensor,
    tensors: Sequence[Tensor],
    eps: float,
    dtype: torch.dtype,
    residual: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    return [like.new_empty(like.shape if needed else (0,)) for like, needed in zip(tensors, needs, strict=True)]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, eps, dtype, residual, _ = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.settings = eps, dtype, residual


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    kept, *tensors = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[: len(tensors)])
    found = _backward_operator(grad, kept, tensors, *ctx.settings, needs)
    return *(one if needed else None for one, needed in zip(found, needs, strict=True)), None, None, None, None


_recorded_operator.register_autograd(_backward, setup_context=_save_for_backward)


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
            return run_forward(settings, x, *others, kept=kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (kept, *arguments), needs = ctx.saved_tensors, ctx.needs_input_grad[1:]
        with without_autocast(grad):
            if torch.is_grad_enabled() or is_batched(grad):
                plain = functools.partial(run_plainly, ctx.settings)
                return None, *differentiable_gradients(plain, arguments, grad, needs)
            return None, *gradients(grad, ctx.settings, *arguments, kept=kept, needs=needs)
