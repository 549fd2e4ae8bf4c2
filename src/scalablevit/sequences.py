"""The blocks of a stage in one call, where nothing is recorded.

Axes: b batch, h height, w width, c channels. Maps are (b, h, w, c).

Around a kernel Python and PyTorch take long to find what they read, as the kernel before has pushed it out of the
caches: with one image up to a third of the time (docs/log.md). Asked for at once, blocks take a fraction of that. A
compiled graph holds one operator for all blocks of a stage, which chooses when it runs: no size is guarded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from scalablevit.blocks import attend_unrecorded, attention_call, takes_lim_of
from scalablevit.convolutions import depthwise_call, encode_positions
from scalablevit.dot_product import is_eager
from scalablevit.feed_forward_passes import feed_forward_call, run_unrecorded
from scalablevit.kernels.cpu.calls import BlockCall, SequenceCall
from scalablevit.kernels.parts import BlockParts, FeedForwardParts, ListParts, PositionParts, WindowParts
from scalablevit.kernels.remembered import remembered
from scalablevit.kernels.selection import is_readable, multiplies_any_rows
from scalablevit.kernels.switches import autocast_dtype
from scalablevit.layers import PEG, PreNormResidual, is_plain, is_plain_with
from scalablevit.recomputation import are_plain, is_recorded, may_be_transformed, product_dtype, without_autocast

# Each kind of block, and how many tensors, whole numbers and factors it comes apart into.
_KINDS: list[tuple[Any, tuple[int, int, int]]] = [
    (WindowParts, (8, 4, 2)),
    (ListParts, (14, 4, 3)),
    (FeedForwardParts, (6, 0, 1)),
    (PositionParts, (2, 0, 0)),
]


def run_blocks(layers: nn.Module, x: Tensor) -> Tensor | None:
    """What layers, one after the other, make of a map: x of (b, h, w, c), to the same.

    None where something is recorded, no kernel does all of it, or a module is not just what it was made as.
    """
    compiles = torch.compiler.is_compiling() and not torch.compiler._is_exporting_flag
    if not compiles and (torch.is_grad_enabled() or not is_eager(x)):
        return None
    if x.ndim != 4 or may_be_transformed() or not multiplies_any_rows(x.device, x.dtype):
        return None
    if autocast_dtype() not in (x.dtype, None):
        return None
    parts = parts_of(layers)
    if not parts:
        return None
    if compiles:
        return _run_in_graph(x, parts)
    return _run_natively(x, parts, settled=False)


def parts_of(layers: nn.Module) -> list[BlockParts] | None:
    """What the blocks of layers are made of, in running order; None where one is not just what it was made as."""
    if not _is_plain_sequence(layers):
        return None
    found = []
    for layer in layers._modules.values():
        if not _is_plain_sequence(layer):
            return None
        for block in cast(nn.Module, layer)._modules.values():
            if not isinstance(block, PreNormResidual | PEG) or not is_plain_with(block, "parts"):
                return None
            parts = block.parts()
            if parts is None:
                return None
            found.append(parts)
    return found


def _is_plain_sequence(module: nn.Module | None) -> bool:
    """Whether a call of a module is one of each that it holds, and no more."""
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return False
    return is_plain(module, type(module))


def _run_natively(x: Tensor, parts: Sequence[BlockParts], *, settled: bool) -> Tensor | None:
    """By one call of a kernel; None where there is none for these sizes and types.

    Products are of the type of x, if that is settled or autocast has it so.
    """
    if not is_readable(x) or not x.is_contiguous():
        return None
    case = x.shape, x.dtype, settled, *((type(one), *one.numbers(), *one.factors()) for one in parts)
    tensors = [one.tensors() for one in parts]
    all_tensors = [one for of_block in tensors for one in of_block]
    run = remembered(case, all_tensors, lambda: _call_for(x, parts, settled=settled))
    return None if run is None else run(x, tensors)


def _call_for(x: Tensor, parts: Sequence[BlockParts], *, settled: bool) -> SequenceCall | None:
    calls = []
    for one in parts:
        call = _block_call(x, one) if settled or _multiplies_in_type_of(x, one) else None
        if call is None:
            return None
        calls.append(call)
    return SequenceCall(calls) if len({one.types for one in calls if len(one.types) > 1}) == 1 else None


def _block_call(x: Tensor, parts: BlockParts) -> BlockCall | None:
    if isinstance(parts, PositionParts):
        return depthwise_call(x, parts.convolution, residual=True, dtype=x.dtype)
    if isinstance(parts, FeedForwardParts):
        return feed_forward_call(x, parts.norm, (*parts.first, *parts.second), x.dtype, residual=True)
    return attention_call(x, parts, x.dtype, residual=True)


def _multiplies_in_type_of(x: Tensor, parts: BlockParts) -> bool:
    tensors = parts.tensors()
    norm, layers = (None, tensors) if isinstance(parts, PositionParts) else (parts.norm, tensors[2:])
    return product_dtype(x, norm, layers) == x.dtype


def _fits(parts: BlockParts, channels: int) -> bool:
    for one, size in zip(parts.tensors(), parts.sizes(channels), strict=True):
        if one is not None and one.shape != size:
            return False
    return True


def _run_in_graph(x: Tensor, parts: Sequence[BlockParts]) -> Tensor | None:
    """As one operator of a compiled graph; None where the compiler had better see blocks."""
    tensors = [tensor for one in parts for tensor in one.tensors()]
    if is_recorded(x, *tensors) or not are_plain((x, *tensors)):
        return None
    for one in parts:  # PyTorch 2.10's tracer does not look into `all`
        if not (_fits(one, x.shape[-1]) and _multiplies_in_type_of(x, one)):
            return None  # the layers say what is wrong
        if not takes_lim_of(one, x.dtype):
            return None
    kinds = [next(i for i, (kind, _) in enumerate(_KINDS) if isinstance(one, kind)) for one in parts]
    numbers = [number for one in parts for number in one.numbers()]
    factors = [factor for one in parts for factor in one.factors()]
    return cast(Tensor, _operator(x, tensors, kinds, numbers, factors))


@torch.library.custom_op("scalablevit::block_sequence", mutates_args=())
def _operator(
    x: Tensor,
    tensors: Sequence[Tensor | None],
    kinds: Sequence[int],
    numbers: Sequence[int],
    factors: Sequence[float],
) -> Tensor:
    """Blocks one after the other, in products of the type of x: what parts of these kinds come apart into."""
    lists, parts = (iter(tensors), iter(numbers), iter(factors)), []
    for number in kinds:
        kind, counts = _KINDS[number]
        parts.append(kind.of(*(list(islice(each, count)) for each, count in zip(lists, counts, strict=True))))
    x = x.contiguous()
    out = _run_natively(x, parts, settled=True)
    if out is not None:
        return out
    with without_autocast(x):
        for block in parts:
            x = _run_block(x, block)
    return x


@_operator.register_fake
def _operator_fake(
    x: Tensor,
    tensors: Sequence[Tensor | None],
    kinds: Sequence[int],
    numbers: Sequence[int],
    factors: Sequence[float],
) -> Tensor:
    return x.new_empty(x.shape)


def _run_block(x: Tensor, parts: BlockParts) -> Tensor:
    """A block by itself."""
    if isinstance(parts, PositionParts):
        return encode_positions(x, parts.convolution)
    if isinstance(parts, FeedForwardParts):
        return run_unrecorded(x, parts.norm, (*parts.first, *parts.second), x.dtype)
    return attend_unrecorded(x, parts, x.dtype)
