"""Calls of the C++ kernels for whole attentions (`blocks.h`), from the norm to the sum.

Axes: b batch, h height, w width, c channels. Maps are (b, h, w, c), contiguous, and of the types and sizes that
`scalablevit.blocks` has looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from scalablevit.kernels.cpu.calls import BlockCall
from scalablevit.kernels.parts import ListParts, WindowParts


def window_call(x: Tensor, parts: WindowParts, *, residual: bool) -> BlockCall:
    """What attends in the windows of maps such as x, and adds the map if wanted.

    Queries and keys together have a multiple of 32 channels.
    """
    heads, (key_width, value_width) = parts.heads, parts.widths
    positions, window = x.numel() // x.shape[-1], (min(parts.window_size, side) for side in x.shape[1:3])
    return BlockCall.of(
        "attend_in_windows_block",
        x,
        parts.tensors(),
        layers=(2, 6),
        room=_room(x, 9 * heads * value_width, positions * heads * 2 * (key_width + value_width)),
        sizes=(*x.shape, heads, key_width, value_width, *window, int(residual), int(parts.is_dense())),
        factors=parts.factors(),
    )


def list_call(x: Tensor, parts: ListParts, *, residual: bool) -> BlockCall:
    """What attends to keys of a reduced map, for maps such as x, and adds the map if wanted.

    The map is no smaller than a cell along either side.
    """
    heads, (key_width, value_width), factor = parts.heads, parts.widths, parts.factor
    b, h, w, c = x.shape
    cells = b * (h // factor) * (w // factor)
    numbers = (b * h * w + cells) * heads * (key_width + value_width)
    if parts.reduction is not None:
        numbers += cells * (c + heads * key_width)
    return BlockCall.of(
        "attend_to_list_block",
        x,
        parts.tensors(),
        layers=(2, 6, 10, 12),
        room=_room(x, factor * factor * c, numbers),
        sizes=(*x.shape, heads, key_width, value_width, factor, int(residual)),
        factors=parts.factors(),
    )


def kept_of_windows(room: Tensor, x: Tensor, parts: WindowParts) -> tuple[Tensor, ...]:
    """What a `window_call` leaves in its room, each (b, h, w, ...): queries with keys, values, what it attended to."""
    of_keys, of_values = (parts.heads * width for width in parts.widths)
    taps, rest = 9 * of_values * 4 // x.itemsize, x.shape[:-1]
    return _maps_of(room, taps, [(*rest, 2 * of_keys), (*rest, of_values), (*rest, of_values)])


def kept_of_list(room: Tensor, x: Tensor, parts: ListParts) -> tuple[Tensor, ...]:
    """What a `list_call` leaves in its room: queries (b, q, ...), keys with values (b, k, ...), what it attended to.

    Where there is a reduction also the reduced map, (b, k, c), and what the last layer read, (b, k, n * d).
    """
    of_keys, of_values = (parts.heads * width for width in parts.widths)
    b, h, w, c = x.shape
    factor, keys = parts.factor, (h // parts.factor) * (w // parts.factor)
    sizes = [(b, h * w, of_keys), (b, keys, of_keys + of_values), (b, h * w, of_values)]
    if parts.reduction is not None:
        sizes += [(b, keys, c), (b, keys, of_keys)]
    return _maps_of(room, factor * factor * c * 4 // x.itemsize, sizes)


def _maps_of(room: Tensor, start: int, sizes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
    found = []
    for size in sizes:
        found.append(room.narrow(0, start, math.prod(size)).view(size))
        start += math.prod(size)
    assert start == room.numel()
    return tuple(found)


def _room(x: Tensor, floats: int, numbers: int) -> int:
    """Numbers of the type of x that take as much memory as so many of float32 and of that type."""
    return floats * 4 // x.itemsize + numbers
