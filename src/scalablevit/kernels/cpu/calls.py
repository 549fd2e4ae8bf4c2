"""Calls of C++ kernels that read a dozen tensors: whole branches of a block, from the norm to the sum, and several of
them one after the other.

Axes: c channels. Tensors are on a CPU, of types and sizes that the caller has looked at: weights are contiguous, of the
type of the map or float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scalablevit.kernels.cpu.attention import addresses, call
from scalablevit.kernels.cpu.kept_weights import KeptWeight, kept_weight
from scalablevit.kernels.cpu.rows import as_float


class BlockCall(NamedTuple):
    """All of a call but the map, for as long as the parameters lie where they lie. It holds none of them.

    Args:
        name: Of the kernel.
        types: Of the map, and of the weights of layers, if there are any.
        addresses: Of the parameters, in the kernel's order; None where some are converted at each call.
        layers: Which parameters are weights of layers, of the type that was given.
        kept: Where these are kept packed, as far as they are.
        room: How many numbers of the type of the map the kernel wants memory for.
        sizes: In the kernel's order.
        factors: What the kernel is given beside all these, in its order: first these numbers.
        settings: Then these.
    """

    name: str
    types: tuple[torch.dtype, ...]
    addresses: tuple[int, ...] | None
    layers: tuple[int, ...]
    kept: tuple[KeptWeight | None, ...]
    room: int
    sizes: tuple[int, ...]
    factors: tuple[float, ...]
    settings: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        name: str,
        x: Tensor,
        parameters: Sequence[Tensor | None],
        *,
        layers: tuple[int, ...] = (),
        room: int = 0,
        sizes: tuple[int, ...],
        factors: Sequence[float] = (),
        settings: tuple[Any, ...] = (),
    ) -> BlockCall:
        """For a map such as x and these parameters, whose layers, if there are any, are all of one type."""
        read = _as_read(parameters, layers)
        stay = all(one is parameter for one, parameter in zip(read, parameters, strict=True))
        weights = [parameters[i] for i in layers]  # of which the last is always there
        types = (x.dtype, *(one.dtype for one in weights[-1:] if one is not None))
        kept = tuple(None if one is None else kept_weight(one) for one in weights)
        addresses = _addresses(read, layers, kept) if stay else None
        return cls(name, types, addresses, layers, kept, room, sizes, tuple(factors), settings)

    def __call__(self, x: Tensor, parameters: Sequence[Tensor | None]) -> Tensor:
        """What the kernel makes of a map, contiguous and as large."""
        out = torch.empty_like(x)
        self.into(out, x, parameters, x.new_empty(self.room) if self.room else None)
        return out

    def into(self, out: Tensor, x: Tensor, parameters: Sequence[Tensor | None], between: Tensor | None) -> None:
        """Likewise, into memory that is there; `between` is where what comes before the result goes."""
        read = self.as_read(parameters)  # which lives until the kernel returns
        block = self.block(read, x.data_ptr(), 0 if between is None else between.data_ptr(), out.data_ptr())
        call(self.name, self.types, block, *map(ctypes.c_float, self.factors), *self.settings)

    def as_read(self, parameters: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """The parameters as the kernel reads them."""
        return _as_read(parameters, self.layers) if self.addresses is None else parameters

    def block(self, read: Sequence[Tensor | None], x: int, between: int, out: int) -> ctypes.Array[ctypes.c_int64]:
        """The kernel's struct, with these parameters and addresses."""
        addresses = _addresses(read, self.layers, self.kept) if self.addresses is None else self.addresses
        numbers = x, *addresses, between, out, *self.sizes
        return (ctypes.c_int64 * len(numbers))(*numbers)


class _Step(ctypes.Structure):
    """One call of several."""

    _fields_ = (("branch", ctypes.c_int64), ("block", ctypes.c_void_p), ("factors", ctypes.c_float * 4))


# In the order of `Branch` in sequence.h.
_BRANCHES = "attend_in_windows_block", "attend_to_list_block", "feed_forward_block", "convolve_depthwise"


class SequenceCall:
    """Calls for maps of one size one after the other: each reads what the one before gave.

    Args:
        calls: In their order, of the kernels that `sequence.h` has. A feed-forward drops nothing.
    """

    def __init__(self, calls: Sequence[BlockCall]) -> None:
        self._calls = calls
        self._types = max((one.types for one in calls), key=len)
        assert {one.types for one in calls} <= {self._types, self._types[:1]}
        self._room = max(one.room for one in calls)
        self._needs_another = any(one.name == _BRANCHES[-1] for one in calls[1:])
        self._blocks = [None if one.addresses is None else one.block((), 0, 0, 0) for one in calls]
        self._steps = (_Step * len(calls))()
        for step, one, block in zip(self._steps, calls, self._blocks, strict=True):
            step.branch, step.factors = _BRANCHES.index(one.name), one.factors
            step.block = None if block is None else ctypes.addressof(block)

    def __call__(self, x: Tensor, parameters: Sequence[Sequence[Tensor | None]]) -> Tensor:
        """What comes of a contiguous map in the end, contiguous and as large; of each call its parameters."""
        out, room = torch.empty_like(x), x.new_empty(self._room)
        other = torch.empty_like(x) if self._needs_another else None
        steps, living = self._steps, []
        if None in self._blocks:  # some parameters are converted each time
            steps = type(steps).from_buffer_copy(steps)
            for i, (one, own) in enumerate(zip(self._calls, parameters, strict=True)):
                if self._blocks[i] is None:
                    read = one.as_read(own)
                    block = one.block(read, 0, 0, 0)
                    living.append((read, block))
                    steps[i].block = ctypes.addressof(block)
        numbers = steps, ctypes.c_int64(len(steps)), *addresses(x, other, room, out)
        call("run_steps", self._types, *numbers)
        return out


def _as_read(parameters: Sequence[Tensor | None], layers: tuple[int, ...]) -> list[Tensor | None]:
    """Weights of layers as they are, all else in float32."""
    return [one if one is None or i in layers else as_float(one) for i, one in enumerate(parameters)]


def _addresses(
    tensors: Sequence[Tensor | None], layers: tuple[int, ...], kept: tuple[KeptWeight | None, ...]
) -> tuple[int, ...]:
    """Of tensors, and behind that of each layer's weight where it is kept packed, 0 where it is not."""
    packed = {i: 0 if one is None else one.address for i, one in zip(layers, kept, strict=True)}
    numbers = []
    for i, one in enumerate(tensors):
        numbers.append(0 if one is None else one.data_ptr())
        if i in packed:
            numbers.append(packed[i])
    return tuple(numbers)
