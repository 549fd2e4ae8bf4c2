"""Scaled dot-product attention through PyTorch's fused kernels, whatever the widths of keys and values.

Axes: b batch, n heads, q queries, k keys, d width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scalablevit.kernels.dropout import Dropout
from scalablevit.kernels.recording import call_kernel
from scalablevit.kernels.selection import is_wanted, lists_kernel


def is_exporting() -> bool:
    """Whether `torch.export` is looking. False in TorchScript, which does not know the question."""
    if torch.jit.is_scripting():
        return False
    else:
        # The flag behind torch.compiler.is_exporting(), which torch.compile of PyTorch 2.10 takes for true.
        return torch.compiler._is_exporting_flag


def is_traced() -> bool:
    """Whether `torch.compile` or `torch.export` is looking, for whom a branch on a size is a graph for that size."""
    if torch.jit.is_scripting():
        return False
    else:
        return torch.compiler.is_compiling()


def is_eager(x: Any) -> bool:
    """Whether nothing but eager PyTorch looks: no compiler, exporter, tracer or transform of `torch.func`."""
    if not isinstance(x, Tensor) or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not torch._C._are_functorch_transforms_active()


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(b, q, n*d) to (b, n, q, d): heads outer, head width inner. A view; no copy."""
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(b, n, q, d) to (b, q, n*d). The fused kernels lay their result out so that this copies nothing."""
    return x.transpose(1, 2).flatten(2)


def laid_out(x: Tensor) -> Tensor:
    """`x`; in an exported graph, as a copy in row-major order.

    Whether a tensor with an axis of length 1 needs copying depends on its size. An exported graph, which is to serve
    every size, must not ask.
    """
    return x.clone(memory_format=torch.contiguous_format) if is_exporting() else x


# Up to as many keys the plain products are faster than the backward pass of PyTorch's fused kernel for CPUs in half
# precision, 1.5 to 5 times at 49 keys; see docs/log.md.
_SHORT_KEYS = 128


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float = 0.0, mask: Tensor | None = None
) -> Tensor:
    """softmax(scale * query @ key^T + mask) @ value, without holding the scores where a fused kernel exists.

    Args:
        query: (b, n, q, d).
        key: (b, n, k, d).
        value: (b, n, k, d').
        scale: Factor of the scores.
        dropout: Probability that an attention weight is zeroed; 0 outside training.
        mask: Added to the scores; broadcasts to (b, n, q, k).

    Returns:
        (b, n, q, d').
    """
    if is_exporting():
        return _attend_unfused(query, key, value, scale, dropout, mask)
    if torch.jit.is_scripting():
        return attend_fused(query, key, value, scale, dropout, mask)
    else:
        if mask is None and is_wanted(query.device) and not torch.jit.is_tracing():
            if is_traced():
                if dropout == 0.0:  # the operator decides, so that no size is guarded
                    return torch.ops.scalablevit.short_attention(query, key, value, scale)
            else:
                kernel = lists_kernel(query, key, value, dropout=dropout)
                if kernel is not None and dropout > 0.0:
                    return _attend_and_drop_by(kernel, query, key, value, scale, Dropout.drawn(dropout))
                if kernel is not None:
                    return _attend_by(kernel, query, key, value, scale)
        body = _attend_unfused if _is_slow_to_train(query, key, value) else attend_fused
        return body(query, key, value, scale, dropout, mask)


def _attend_by(kernel: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return call_kernel(
        (query, key, value),
        forward=lambda *lists: kernel.attend_to_few(*lists, scale),
        backward=lambda *lists: kernel.attend_to_few_backward(*lists, scale),
        plain=lambda query, key, value: attend_fused(query, key, value, scale, 0.0, None),
        operator=lambda *lists: _operator(*lists, scale),
    )


def _attend_and_drop_by(
    kernel: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: Dropout
) -> Tensor:
    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dropout.applied_to(torch.softmax(query @ key.mT * scale, dim=-1)) @ value

    return call_kernel(
        (query, key, value),
        forward=lambda *lists: kernel.attend_to_few(*lists, scale, dropout),
        backward=lambda *lists: kernel.attend_to_few_backward(*lists, scale, dropout),
        plain=plain,
        operator=plain,  # which is not asked for: no kernel is found where operations are counted or recorded
    )


def attend_fused(
    query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float, mask: Tensor | None
) -> Tensor:
    key_width, value_width = query.shape[-1], value.shape[-1]
    if key_width == value_width:
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale)
    # The flash kernels want one width. Zeros added to the narrower side change no score, and no value that is kept.
    if key_width < value_width:
        query, key = F.pad(query, [0, value_width - key_width]), F.pad(key, [0, value_width - key_width])
    else:
        value = F.pad(value, [0, key_width - value_width])
    return F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale)[..., :value_width]


def _is_slow_to_train(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether a backward pass will come that PyTorch's fused kernel is slow in."""
    if query.device.type != "cpu" or query.dtype not in (torch.bfloat16, torch.float16) or is_traced():
        return False
    needs_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return needs_gradients and key.shape[-2] <= _SHORT_KEYS


def _attend_unfused(
    query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float, mask: Tensor | None
) -> Tensor:
    """The same in plain products. `torch.matmul` would tie an exported graph to lists of more than one query or key."""
    b, heads, queries, _ = query.shape
    scores = torch.bmm(_fold_heads(query) * scale, _fold_heads(key).transpose(1, 2))
    scores = scores.view(b, heads, queries, -1)
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    weights = F.dropout(weights, dropout, training=dropout > 0.0).view(b * heads, queries, -1)
    return torch.bmm(weights, _fold_heads(value)).view(b, heads, queries, -1)


def _fold_heads(x: Tensor) -> Tensor:
    """(b, n, q, d) to (b * n, q, d)."""
    return (laid_out(x) if is_exporting() else x.contiguous()).view(-1, x.shape[2], x.shape[3])


@torch.library.custom_op("scalablevit::short_attention", mutates_args=())
def _operator(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    if (kernel := lists_kernel(query, key, value)) is not None:
        return kernel.attend_to_few(query, key, value, scale)
    return _with_heads_inside(attend_fused(query, key, value, scale, 0.0, None))


@_operator.register_fake
def _operator_fake(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return _empty_with_heads_inside(query, value.shape[-1])


@torch.library.custom_op("scalablevit::short_attention_backward", mutates_args=())
def _backward_operator(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    if (kernel := lists_kernel(query, key, value)) is not None:
        return kernel.attend_to_few_backward(grad, query, key, value, scale)

    def forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend_fused(query, key, value, scale, 0.0, None)

    grad_query, grad_key, grad_value = torch.func.vjp(forward, query, key, value)[1](grad)
    return _with_heads_inside(grad_query), _with_heads_inside(grad_key), _with_heads_inside(grad_value)


@_backward_operator.register_fake
def _backward_operator_fake(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad_query, grad_key, grad_value = (_empty_with_heads_inside(x, x.shape[-1]) for x in (query, key, value))
    return grad_query, grad_key, grad_value


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward_operator(grad, *ctx.saved_tensors, ctx.scale), None


_operator.register_autograd(_backward, setup_context=_save_for_backward)


def _empty_with_heads_inside(x: Tensor, width: int) -> Tensor:
    """(b, n, q, width) for (b, n, q, ...), whose heads lie side by side: (b, q, n, width) in memory."""
    b, heads, length, _ = x.shape
    return x.new_empty(b, length, heads, width).transpose(1, 2)


def _with_heads_inside(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)
