"""Calls the C++ kernels: the same four functions as the Triton kernels have, for tensors on a CPU.

Axes: b batch, h height, w width, n heads, q queries, k keys, d width of a query and key head, d' of a value head. The
caller has asked `selection` whether the kernels take these tensors.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from scalablevit.kernels.cpu.compilation import library
from scalablevit.kernels.dropout import NO_DROPOUT, Dropout
from scalablevit.kernels.recording import in_memory


def attend_in_windows(
    query_key: Tensor,
    value: Tensor,
    heads: int,
    window_size: int,
    scale: float,
    lim: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention inside windows, plus LIM's convolution of the value map if its parameters are given.

    Args:
        query_key: (b, h, w, 2 * n * d): queries and keys side by side, heads outer in each.
        value: (b, h, w, n * d'), heads outer.
        heads: Number of heads.
        window_size: Height and width of a window, in positions.
        scale: Factor of the scores.
        lim: Weight (n * d', 1, 3, 3) and bias (n * d') of LIM.

    Returns:
        (b, h, w, n * d'), contiguous.
    """
    query_key, value = _with_unit_stride(query_key), _with_unit_stride(value)
    out = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    weight, bias = (None, None) if lim is None else (taps_of(lim[0]), lim[1].float().contiguous())
    call(
        "attend_in_windows",
        value.dtype,
        *addresses(query_key, value, out, weight, bias),
        *_map_sizes(query_key, value, heads),
        _strides(query_key, value),
        *_window(value, window_size),
        ctypes.c_float(scale),
    )
    return out


def attend_in_windows_backward(
    grad: Tensor,
    query_key: Tensor,
    value: Tensor,
    heads: int,
    window_size: int,
    scale: float,
    lim_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of `attend_in_windows` with respect to its two maps, from that of its result (b, h, w, n * d').

    LIM's part in the gradient of the value map is there if its weight is given.
    """
    grad, query_key, value = (_with_unit_stride(x) for x in (grad, query_key, value))
    grad_query_key = torch.empty(query_key.shape, dtype=query_key.dtype, device=value.device)
    grad_value = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    weight = bias = None
    if lim_weight is not None:  # the gradient of a convolution is one with its weight turned round
        weight, bias = (
            taps_of(lim_weight.flip(2, 3)),
            torch.zeros(value.shape[-1], dtype=torch.float32, device=value.device),
        )
    call(
        "differentiate_in_windows",
        value.dtype,
        *addresses(grad, query_key, value, grad_query_key, grad_value, weight, bias),
        *_map_sizes(query_key, value, heads),
        _strides(grad, query_key, value),
        *_window(value, window_size),
        ctypes.c_float(scale),
    )
    return grad_query_key, grad_value


def attend_to_few(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: Dropout = NO_DROPOUT) -> Tensor:
    """softmax(scale * query @ key^T) @ value for few keys, of any strides.

    Args:
        query: (b, n, q, d).
        key: (b, n, k, d).
        value: (b, n, k, d').
        scale: Factor of the scores.
        dropout: Of attention weights: of rows (b, n, q).

    Returns:
        (b, n, q, d'), which lies in memory as (b, q, n, d').
    """
    query, key, value = (_with_unit_stride(x) for x in (query, key, value))
    out = _empty_with_heads_inside(query, value.shape[-1])
    call(
        "attend_to_list",
        value.dtype,
        *addresses(query, key, value, out),
        *_list_sizes(query, value),
        _strides(query, key, value),
        ctypes.c_float(scale),
        *dropout.arguments(),
    )
    return out


def attend_to_few_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: Dropout = NO_DROPOUT
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attend_to_few` with respect to its three tensors, from that of its result (b, n, q, d')."""
    tensors = [_with_unit_stride(x) for x in (grad, query, key, value)]
    gradients = [_empty_with_heads_inside(x, x.shape[-1]) for x in (query, key, value)]
    call(
        "differentiate_list",
        value.dtype,
        *addresses(*tensors, *gradients),
        *_list_sizes(query, value),
        _strides(*tensors),
        ctypes.c_float(scale),
        *dropout.arguments(),
    )
    return gradients[0], gradients[1], gradients[2]


def call(name: str, dtype: torch.dtype | tuple[torch.dtype, ...], *arguments: Any) -> None:
    """Calls a kernel for tensors of a type, or of several; the number of threads comes last."""
    call_as_it_is(name + _suffix(dtype), *arguments)


def call_as_it_is(name: str, *arguments: Any) -> None:
    """Calls a kernel by the whole of its name; the number of threads comes last."""
    kernels = library()
    assert kernels is not None
    getattr(kernels, name)(*arguments, torch.get_num_threads())


@cache
def _suffix(dtype: torch.dtype | tuple[torch.dtype, ...]) -> str:
    types = dtype if isinstance(dtype, tuple) else (dtype,)
    return "".join(str(one).replace("torch.", "_") for one in types)


def addresses(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    """Of tensors, which must live until the kernel returns; null for None.

    Raises:
        RuntimeError: If one is not in the machine's memory.
    """
    for tensor in tensors:
        if tensor is not None and not tensor.is_cpu:
            raise RuntimeError(
                f"a parameter is on {tensor.device}, what it is applied to on the CPU: move the one or the other"
            )
    return [ctypes.c_void_p(None if x is None else x.data_ptr()) for x in tensors]


def _strides(*tensors: Tensor) -> Any:
    """Of the first three axes of each: an array of 64-bit integers."""
    strides = [stride for x in tensors for stride in x.stride()[:3]]
    return (ctypes.c_int64 * len(strides))(*strides)


def _map_sizes(query_key: Tensor, value: Tensor, heads: int) -> tuple[int, ...]:
    """b, h, w, n, d, d'."""
    return *value.shape[:3], heads, query_key.shape[-1] // (2 * heads), value.shape[-1] // heads


def _list_sizes(query: Tensor, value: Tensor) -> tuple[int, ...]:
    """b, n, q, k, d, d'."""
    return *query.shape[:3], value.shape[2], query.shape[-1], value.shape[-1]


def _window(value: Tensor, window_size: int) -> tuple[int, int]:
    return min(window_size, value.shape[1]), min(window_size, value.shape[2])


def taps_of(weight: Tensor) -> Tensor:
    """(c, 1, r, r) to (r * r, c), in float32."""
    return weight.detach().flatten(1).t().float().contiguous()


def _empty_with_heads_inside(x: Tensor, width: int) -> Tensor:
    """(b, n, q, width) for (b, n, q, ...), whose heads lie side by side: (b, q, n, width) in memory."""
    b, heads, length, _ = x.shape
    return torch.empty((b, length, heads, width), dtype=x.dtype, device=x.device).transpose(1, 2)


def _with_unit_stride(x: Tensor) -> Tensor:
    if x.is_neg() or x._is_zerotensor():  # as gradients may be
        return in_memory(x)
    return x if x.stride(-1) == 1 else x.contiguous()
