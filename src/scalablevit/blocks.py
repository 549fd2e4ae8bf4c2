"""Attentions from the norm to the sum in one call, and as one step of autograd.

Axes: b batch, h height, w width, c channels. Maps are (b, h, w, c).

Step by step an attention is a dozen operations. With one image, or in bfloat16, what Python and PyTorch do around them
takes a third of the time, and what a compiler makes of them goes through memory between the products. Eagerly a kernel
does all of it, or the layers run; where a backward pass will come it is one step of autograd. A compiled graph holds an
operator, which chooses when it runs: no size is guarded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from scalablevit.attention_passes import gradients, run_by_steps
from scalablevit.kernels.cpu.calls import BlockCall
from scalablevit.kernels.cpu.convolution import is_worthwhile
from scalablevit.kernels.parts import BlockParts, ListParts, WindowParts
from scalablevit.kernels.recording import in_memory, is_batched
from scalablevit.kernels.remembered import remembered
from scalablevit.kernels.selection import blocks_kernel, convolves_any_map, is_readable, multiplies_any_rows
from scalablevit.kernels.switches import autocast_dtype
from scalablevit.recomputation import (
    are_plain,
    differentiable_gradients,
    is_recorded,
    may_be_transformed,
    may_recompute,
    product_dtype,
    without_autocast,
)


def attend_at_once(x: Tensor, parts: WindowParts | ListParts, *, residual: bool) -> Tensor | None:
    """The attention of a map, plus that map if wanted; None where no kernel does all of it."""
    tensors = parts.tensors()
    if not may_recompute(x):
        return None
    kind, numbers, factors = type(parts), parts.numbers(), parts.factors()
    run = _call_natively(x, kind, tensors, numbers, factors, None, residual=residual)
    if run is None:
        return None
    if not is_recorded(x, *tensors):
        return run(x, tensors)
    if not all(one is None or one.requires_grad for one in tensors):
        return None  # step by step only what the others ask for is kept
    return cast(Tensor, _Attention.apply(run, kind, numbers, factors, residual, x, *tensors))


class _Attention(torch.autograd.Function):
    """One call forward, which keeps the map and what the kernel leaves behind."""

    @staticmethod
    def forward(
        ctx: Any,
        run: BlockCall,
        kind: type[WindowParts] | type[ListParts],
        numbers: Sequence[int],
        factors: Sequence[float],
        residual: bool,
        x: Tensor,
        *tensors: Tensor | None,
    ) -> Tensor:
        out, room = torch.empty_like(x), x.new_empty(run.room)
        run.into(out, x, tensors, room)
        ctx.save_for_backward(x, room, *tensors)
        ctx.settings = kind, numbers, factors, residual
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, room, *tensors = ctx.saved_tensors
        kind, numbers, factors, residual = ctx.settings
        needs = ctx.needs_input_grad[5:]

        def plainly(x: Tensor, *tensors: Tensor | None) -> Tensor:
            out = run_by_steps(x, kind.of(tensors, numbers, factors), x.dtype, plain=True)
            return x + out if residual else out

        with without_autocast(grad):
            found: Sequence[Tensor | None] | None = None
            if not torch.is_grad_enabled() and not is_batched(grad):
                parts = kind.of(tensors, numbers, factors)
                found = gradients(in_memory(grad), x, room, parts, residual=residual, needs_x=needs[0])
            if found is None:
                found = differentiable_gradients(plainly, (x, *tensors), grad, needs)
        return None, None, None, None, None, *found


def attend_in_graph(x: Tensor, parts: WindowParts | ListParts) -> Tensor | None:
    """A map plus its attention as one operator of a compiled graph; None where the compiler had better see steps."""
    dtype = autocast_dtype() or x.dtype
    tensors = parts.tensors()
    if x.ndim != 4 or is_recorded(x, *tensors) or not multiplies_any_rows(x.device, dtype):
        return None
    if may_be_transformed() or not are_plain(tensors) or product_dtype(x, parts.norm, tensors[2:]) != dtype:
        return None
    if not takes_lim_of(parts, dtype):
        return None
    operator = _window_block if isinstance(parts, WindowParts) else _list_block
    return cast(Tensor, operator(x, tensors, parts.numbers(), parts.factors(), dtype))


def takes_lim_of(parts: BlockParts, dtype: torch.dtype) -> bool:
    """Whether kernels do what these have for LIM, if anything, in products of `dtype` and maps that are not small."""
    return not isinstance(parts, WindowParts) or not parts.is_dense() or convolves_any_map(parts.lim.weight, dtype)


def _call_natively(
    x: Tensor,
    kind: type[WindowParts] | type[ListParts],
    tensors: Sequence[Tensor | None],
    numbers: Sequence[int],
    factors: Sequence[float],
    dtype: torch.dtype | None,
    *,
    residual: bool,
) -> BlockCall | None:
    """What does what parts of that kind come apart into; None where no kernel takes these sizes and types.

    Products are of `dtype`; without one, as autocast has them.
    """
    if x.ndim != 4 or not is_readable(x) or not x.is_contiguous():
        return None
    case = x.shape, x.dtype, dtype, residual, *numbers, *factors

    def find() -> BlockCall | None:
        parts = kind.of(tensors, numbers, factors)
        found = product_dtype(x, parts.norm, tensors[2:]) if dtype is None else dtype
        return None if found is None else attention_call(x, parts, found, residual=residual)

    return remembered(case, tensors, find)


def attend_unrecorded(x: Tensor, parts: WindowParts | ListParts, dtype: torch.dtype) -> Tensor:
    """A map plus its attention, in products of `dtype`, of which nothing is recorded: by a kernel or step by step."""
    x, tensors = x.contiguous(), parts.tensors()
    run = _call_natively(x, type(parts), tensors, parts.numbers(), parts.factors(), dtype, residual=True)
    if run is not None:
        return run(x, tensors)
    with without_autocast(x):
        return x + run_by_steps(x, parts, dtype)


def attention_call(
    x: Tensor, parts: WindowParts | ListParts, dtype: torch.dtype, *, residual: bool
) -> BlockCall | None:
    """The kernel's call for maps such as x, in products of `dtype`; None where there is none."""
    if isinstance(parts, ListParts) and parts.reduction is not None and parts.factor == 1:
        return None  # to the kernel that is one without a reduction
    if not takes_lim_of(parts, dtype):
        return None
    if isinstance(parts, WindowParts) and parts.is_dense() and not is_worthwhile(x, parts.lim.weight):
        return None
    parameters: list[Tensor] = []
    for one, size in zip(parts.tensors(), parts.sizes(x.shape[-1]), strict=True):
        if one is None:
            continue
        if one.shape != size or (len(size) == 2 and one.dtype != parts.to_out.weight.dtype):
            return None  # the layers say what is wrong
        parameters.append(one)
    if isinstance(parts, WindowParts):
        keys = min(parts.window_size, x.shape[1]) * min(parts.window_size, x.shape[2])
        fits = parts.heads * parts.widths[0] % 16 == 0
        kernel = blocks_kernel(x, dtype, parameters, window_keys=keys) if fits else None
        return None if kernel is None else cast(BlockCall, kernel.window_call(x, parts, residual=residual))
    keys = (x.shape[1] // parts.factor) * (x.shape[2] // parts.factor)  # none where the map is smaller than a cell
    kernel = blocks_kernel(x, dtype, parameters, list_keys=keys)
    return None if kernel is None else cast(BlockCall, kernel.list_call(x, parts, residual=residual))


@torch.library.custom_op("scalablevit::window_block", mutates_args=())
def _window_block(
    x: Tensor, tensors: Sequence[Tensor | None], numbers: Sequence[int], factors: Sequence[float], dtype: torch.dtype
) -> Tensor:
    """A map plus its attention in windows, in products of `dtype`: what `WindowParts` comes apart into."""
    return attend_unrecorded(x, WindowParts.of(tensors, numbers, factors), dtype)


@torch.library.custom_op("scalablevit::list_block", mutates_args=())
def _list_block(
    x: Tensor, tensors: Sequence[Tensor | None], numbers: Sequence[int], factors: Sequence[float], dtype: torch.dtype
) -> Tensor:
    """A map plus its attention to a reduced one, in products of `dtype`: what `ListParts` comes apart into."""
    return attend_unrecorded(x, ListParts.of(tensors, numbers, factors), dtype)


@_window_block.register_fake
@_list_block.register_fake
def _block_fake(
    x: Tensor, tensors: Sequence[Tensor | None], numbers: Sequence[int], factors: Sequence[float], dtype: torch.dtype
) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, dtype))
