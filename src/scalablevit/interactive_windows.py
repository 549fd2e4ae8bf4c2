"""Window attention and LIM, the 3x3 convolution of the value map, in one operator: for where one kernel does both.

Axes: b batch, h height, w width, n heads, d width of a query and key head, d' of a value head. Without the kernel the
two are better apart, where `torch.compile` sees the convolution; `attention` calls this only where kernels are wanted.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scalablevit.kernels.recording import call_kernel, in_memory
from scalablevit.kernels.selection import depthwise_kernel, takes_lim, windows_kernel
from scalablevit.windows import _attend_in_windows


def interactive_window_attention(
    query_key: Tensor,
    value: Tensor,
    lim_weight: Tensor,
    lim_bias: Tensor,
    heads: int,
    window_size: int,
    scale: float,
) -> Tensor:
    """`windows.window_attention` plus LIM: a depthwise 3x3 convolution of the value map, zero outside its border.

    Args:
        query_key: (b, h, w, 2 * n * d): queries and keys side by side in the channels, heads outer in each.
        value: (b, h, w, n * d'), heads outer.
        lim_weight: (n * d', 1, 3, 3); like the bias it is taken in the dtype of `value`, as autocast would.
        lim_bias: (n * d').
        heads: Number of heads.
        window_size: Height and width of a window, in positions. A map that is smaller has one window of its own size.
        scale: Factor of the scores.

    Returns:
        (b, h, w, n * d').
    """
    lim_weight, lim_bias = lim_weight.to(value.dtype), lim_bias.to(value.dtype)
    tensors = query_key, value, lim_weight, lim_bias
    arguments: Any = (heads, window_size, scale)
    if torch.compiler.is_compiling():
        return torch.ops.scalablevit.interactive_window_attention(*tensors, *arguments)
    kernel = windows_kernel(query_key, value, heads, window_size)
    return call_kernel(
        tensors,
        forward=lambda query_key, value, *lim: kernel.attend_in_windows(query_key, value, *arguments, lim),
        backward=lambda grad, query_key, value, weight, bias: _gradients(
            kernel, grad, query_key, value, weight, *arguments
        ),
        plain=lambda query_key, value, *lim: attend_and_convolve(query_key, value, *lim, *arguments),
        operator=lambda *tensors: _operator(*tensors, *arguments),
    )


def attend_and_convolve(
    query_key: Tensor, value: Tensor, lim_weight: Tensor, lim_bias: Tensor, heads: int, window_size: int, scale: float
) -> Tensor:
    """By operations of PyTorch; LIM may be a dense one here, (n * d', n * d', 3, 3)."""
    groups = value.shape[-1] // lim_weight.shape[1]
    lim = F.conv2d(value.permute(0, 3, 1, 2), lim_weight, lim_bias, padding=1, groups=groups)
    return _attend_in_windows(query_key, value, heads, window_size, scale, 0.0) + lim.permute(0, 2, 3, 1)


@torch.library.custom_op("scalablevit::interactive_window_attention", mutates_args=())
def _operator(
    query_key: Tensor, value: Tensor, lim_weight: Tensor, lim_bias: Tensor, heads: int, window_size: int, scale: float
) -> Tensor:
    kernel = windows_kernel(query_key, value, heads, window_size)
    if kernel is not None and takes_lim(lim_weight, lim_bias):
        return kernel.attend_in_windows(query_key, value, heads, window_size, scale, (lim_weight, lim_bias))
    return attend_and_convolve(query_key, value, lim_weight, lim_bias, heads, window_size, scale).contiguous()


@_operator.register_fake
def _operator_fake(
    query_key: Tensor, value: Tensor, lim_weight: Tensor, lim_bias: Tensor, heads: int, window_size: int, scale: float
) -> Tensor:
    return value.new_empty(value.shape)


@torch.library.custom_op("scalablevit::interactive_window_attention_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    query_key: Tensor,
    value: Tensor,
    lim_weight: Tensor,
    lim_bias: Tensor,
    heads: int,
    window_size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernel = windows_kernel(query_key, value, heads, window_size)
    if kernel is not None and takes_lim(lim_weight, lim_bias):
        return _gradients(kernel, grad, query_key, value, lim_weight, heads, window_size, scale)

    def forward(query_key: Tensor, value: Tensor, lim_weight: Tensor, lim_bias: Tensor) -> Tensor:
        return attend_and_convolve(query_key, value, lim_weight, lim_bias, heads, window_size, scale)

    pullback = torch.func.vjp(forward, query_key, value, lim_weight, lim_bias)[1]
    grad_query_key, grad_value, grad_weight, grad_bias = (gradient.contiguous() for gradient in pullback(grad))
    return grad_query_key, grad_value, grad_weight, grad_bias


def _gradients(
    kernel: Any,
    grad: Tensor,
    query_key: Tensor,
    value: Tensor,
    lim_weight: Tensor,
    heads: int,
    window_size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    maps = kernel.attend_in_windows_backward(grad, query_key, value, heads, window_size, scale, lim_weight)
    return *maps, *lim_parameter_gradients(grad, value, lim_weight)


def lim_parameter_gradients(grad: Tensor, value: Tensor, lim_weight: Tensor) -> tuple[Tensor, Tensor]:
    # These are sums over the whole batch, which no program of the attention kernels sees. Sums of parts would need
    # atomic additions, in no fixed order, or a second kernel: there is one for CPUs, and elsewhere PyTorch has it.
    kernel = depthwise_kernel(value, lim_weight) if lim_weight.shape[2:] == (3, 3) else None
    if kernel is not None and grad.dtype == value.dtype:
        of_parameters: tuple[Tensor, Tensor] = kernel.parameter_gradients(in_memory(grad), value, lim_weight)
        return of_parameters
    channels = value.shape[-1]
    maps = grad.permute(0, 3, 1, 2), value.permute(0, 3, 1, 2)
    _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        *maps,
        lim_weight.to(value.dtype),
        [channels],
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        channels,
        [False, True, True],
    )
    return grad_weight.contiguous(), grad_bias.contiguous()


@_backward_operator.register_fake
def _backward_operator_fake(
    grad: Tensor,
    query_key: Tensor,
    value: Tensor,
    lim_weight: Tensor,
    lim_bias: Tensor,
    heads: int,
    window_size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = query_key, value, lim_weight, lim_bias
    grad_query_key, grad_value, grad_weight, grad_bias = (x.new_empty(x.shape) for x in inputs)
    return grad_query_key, grad_value, grad_weight, grad_bias


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query_key, value, lim_weight, lim_bias, *ctx.arguments = inputs
    ctx.save_for_backward(query_key, value, lim_weight, lim_bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward_operator(grad, *ctx.saved_tensors, *ctx.arguments), None, None, None


_operator.register_autograd(_backward, setup_context=_save_for_backward)
