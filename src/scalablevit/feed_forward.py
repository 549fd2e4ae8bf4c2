"""The feed-forward block, with a function of its own where PyTorch runs eagerly.

Axes: b batch, h height, w width, c channels, f channels of the hidden layer.

The hidden layer is the widest activation of the network, and moving it through memory costs about as much as the
products around it. So on a CPU both passes go slice by slice over the positions, each slice of the hidden layer being
used up while it is in the cache, and the backward pass computes the GELU again instead of keeping what it gave.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalablevit.layers import Linear, is_plain

_SLICE_BYTES = 4 * 2**20  # of the hidden layer; measured against 1, 2 and 8 MiB, see docs/log.md


class FeedForward(nn.Module):
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
            if self._is_fusible(x):
                return feed_forward(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
            return self._apply_layers(x)

    def _apply_layers(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))

    def _is_fusible(self, x: Tensor) -> bool:
        """Whether nothing but eager PyTorch looks, and the layers are just what they were made as."""
        if not isinstance(x, Tensor) or (self.training and self.dropout.p > 0.0):
            return False
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
            return False
        if not (is_plain(self.fc1) and is_plain(self.fc2)) or self.fc1.bias is None or self.fc2.bias is None:
            return False
        return x.dtype == self.fc1.weight.dtype == self.fc2.weight.dtype


def feed_forward(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """linear(gelu(linear(x))), which autograd records as one step that keeps x and the hidden layer.

    Args:
        x: (..., c).
        weight1: (f, c).
        bias1: (f).
        weight2: (c, f).
        bias2: (c).

    Returns:
        (..., c).
    """
    arguments = [x, weight1, bias1, weight2, bias2]
    device = x.device.type
    autocasts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if autocasts and x.dtype == torch.float32:
        dtype = torch.get_autocast_dtype(device)
        arguments = [tensor.to(dtype) for tensor in arguments]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in arguments):
        out: Tensor = _FeedForward.apply(*arguments)
        return out
    return _forward(None, *arguments)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
        hidden = x.new_empty(*x.shape[:-1], weight1.shape[0])
        out = _forward(hidden, x, weight1, bias1, weight2, bias2)
        ctx.save_for_backward(hidden, x, weight1, bias1, weight2, bias2)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *arguments = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_gradients(grad, arguments, ctx.needs_input_grad)
        return _gradients(grad, hidden, *arguments, needs=ctx.needs_input_grad)


def _forward(
    hidden: Tensor | None, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
) -> Tensor:
    """The result; what goes into the GELU is written to `hidden`, (..., f), unless it is None."""
    rows = x.reshape(-1, x.shape[-1])
    out = x.new_empty(*x.shape[:-1], weight2.shape[0])  # and no view of another: hooks may change it in place
    out_rows = out.view(-1, weight2.shape[0])
    kept = None if hidden is None else hidden.view(-1, hidden.shape[-1])
    for part in _slices(rows, width=weight1.shape[0]):
        if kept is None:
            activated = torch.ops.aten.gelu_(_linear(rows[part], weight1, bias1, out=None))
        else:
            activated = F.gelu(_linear(rows[part], weight1, bias1, out=kept[part]))
        _linear(activated, weight2, bias2, out=out_rows[part])
    return out


def _gradients(
    grad: Tensor,
    hidden: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    kept = hidden.view(-1, hidden.shape[-1])
    grad_x = torch.empty_like(rows) if needs[0] else None
    grad_weight1 = torch.empty_like(weight1) if needs[1] else None
    grad_bias1 = torch.zeros_like(bias1) if needs[2] else None
    grad_weight2 = torch.empty_like(weight2) if needs[3] else None
    grad_bias2 = grad_rows.sum(0) if needs[4] else None
    for part in _slices(rows, width=kept.shape[1]):
        beta = min(part.start, 1)  # 0: the first product overwrites, the others add
        if grad_weight2 is not None:
            grad_weight2.addmm_(grad_rows[part].t(), F.gelu(kept[part]), beta=beta)
        if any(needs[:3]):
            grad_hidden = grad_rows[part] @ weight2
            torch.ops.aten.gelu_backward.grad_input(grad_hidden, kept[part], grad_input=grad_hidden)
            if grad_weight1 is not None:
                grad_weight1.addmm_(grad_hidden.t(), rows[part], beta=beta)
            if grad_bias1 is not None:
                grad_bias1.add_(grad_hidden.sum(0))
            if grad_x is not None:
                torch.mm(grad_hidden, weight1, out=grad_x[part])
    return None if grad_x is None else grad_x.view(x.shape), grad_weight1, grad_bias1, grad_weight2, grad_bias2


def _differentiable_gradients(
    grad: Tensor, arguments: list[Tensor], needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The same for second derivatives, by what autograd can record."""
    x, weight1, bias1, weight2, bias2 = arguments
    out = F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)
    wanted = [tensor for tensor, needed in zip(arguments, needs, strict=True) if needed]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return tuple(next(found) if needed else None for needed in needs)


def _linear(rows: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None) -> Tensor:
    if rows.device.type == "cpu" and rows.dtype == torch.float32:  # see layers.Linear
        return torch.mm(rows, weight.t(), out=out).add_(bias)
    return torch.addmm(bias, rows, weight.t(), out=out)


def _slices(rows: Tensor, width: int) -> list[slice]:
    """Slices of the rows, on a CPU so long that `width` channels of one are about `_SLICE_BYTES`."""
    count = rows.shape[0]
    length = max(1, _SLICE_BYTES // (width * rows.element_size())) if rows.device.type == "cpu" else count
    return [slice(start, start + length) for start in range(0, max(count, 1), max(length, 1))]
