"""Calls of C++ kernels that read a dozen tensors: whole branches of a block, from the norm to the sum.

Axes: c channels. Tensors are on a CPU, of types and sizes that the caller has looked at: weights are contiguous, of the
type of the map or float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scalablevit.kernels.cpu.attention import call
from scalablevit.kernels.cpu.rows import as_float


class BlockCall(NamedTuple):
    """All of a call but the map, for as long as the parameters lie where they lie. It holds none of them.

    Args:
        name: Of the kernel.
        types: Of the map, and of the weights of layers, if there are any.
        addresses: Of the parameters, in the kernel's order; None where some are converted at each call.
        weight: Which parameter the weight is whose type was given; None without one.
        room: How many numbers of the type of the map the kernel wants memory for.
        sizes: In the kernel's order.
        settings: What the kernel is given beside all these, in its order.
    """

    name: str
    types: tuple[torch.dtype, ...]
    addresses: tuple[int, ...] | None
    weight: int | None
    room: int
    sizes: tuple[int, ...]
    settings: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        name: str,
        x: Tensor,
        weight: Tensor | None,
        parameters: Sequence[Tensor | None],
        *,
        room: int = 0,
        sizes: tuple[int, ...],
        settings: tuple[Any, ...] = (),
    ) -> BlockCall:
        """For a map such as x and these parameters; layers are of the type of the weight, if there are any."""
        place = next((i for i, one in enumerate(parameters) if one is weight), None) if weight is not None else None
        read = _as_read(parameters, place)
        kept = all(one is parameter for one, parameter in zip(read, parameters, strict=True))
        types = (x.dtype,) if weight is None else (x.dtype, weight.dtype)
        return cls(name, types, _addresses(read) if kept else None, place, room, sizes, settings)

    def __call__(self, x: Tensor, parameters: Sequence[Tensor | None]) -> Tensor:
        """What the kernel makes of a map, contiguous and as large."""
        out = torch.empty_like(x)
        self.into(out, x, parameters, x.new_empty(self.room) if self.room else None)
        return out

    def into(self, out: Tensor, x: Tensor, parameters: Sequence[Tensor | None], between: Tensor | None) -> None:
        """Likewise, into memory that is there; `between` is where what comes before the result goes."""
        read, addresses = parameters, self.addresses
        if addresses is None:
            read = _as_read(parameters, self.weight)  # which lives until the kernel returns
            addresses = _addresses(read)
        room = 0 if between is None else between.data_ptr()
        numbers = x.data_ptr(), *addresses, room, out.data_ptr(), *self.sizes
        block = (ctypes.c_int64 * len(numbers))(*numbers)
        call(self.name, self.types, block, *self.settings)


def _as_read(parameters: Sequence[Tensor | None], weight: int | None) -> list[Tensor | None]:
    """Weights of layers as they are, all else in float32."""
    return [one if one is None or one.ndim == 2 or i == weight else as_float(one) for i, one in enumerate(parameters)]


def _addresses(tensors: Sequence[Tensor | None]) -> tuple[int, ...]:
    return tuple(0 if one is None else one.data_ptr() for one in tensors)
