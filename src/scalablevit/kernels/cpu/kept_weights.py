"""Weights that kernels keep packed from call to call, as a user has said that they do not change.

Before they multiply, kernels lay weights out as their products read them, in the type of the products. With few images
that takes up to a sixth of the time, as all weights come from memory for it (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from scalablevit.kernels.cpu.compilation import library
from scalablevit.kernels.remembered import count_changes, forget, version_of


class KeptWeight:
    """Where kernels keep one weight packed (`kept_weights.h`), from when they first read it, for as long as this lives.

    They look at a few of its numbers at each call, and pack it anew where those have changed.
    """

    def __init__(self) -> None:
        kernels = library()
        assert kernels is not None
        kernels.new_kept_weight.restype = ctypes.c_void_p
        self.address: int = kernels.new_kept_weight()
        free = partial(kernels.delete_kept_weight, ctypes.c_void_p(self.address))
        weakref.finalize(self, free).atexit = False


class _Entry(NamedTuple):
    weight: weakref.ref[Tensor]
    version: int
    kept: KeptWeight


_entries: dict[int, _Entry] = {}  # by the address of the weight


def keep(weights: Iterable[Tensor]) -> None:
    """From now on these are kept, for as long as they live where they lie. Those that are not on a CPU are left out."""
    there = [one for one in weights if type(one) in {Tensor, nn.Parameter} and one.is_cpu and one.numel() > 0]
    if there and library() is not None:
        for weight in there:
            _add(weight)
        _settle()


def let_go(weights: Iterable[Tensor]) -> None:
    """These are kept no longer."""
    for weight in weights:
        _entries.pop(weight.data_ptr(), None)
    _settle()


def kept_weight(weight: Tensor) -> KeptWeight | None:
    """Where a weight is kept; None where it is packed at each call. One that was changed is as good as a new one."""
    if not _entries:
        return None
    entry = _entries.get(weight.data_ptr())
    if entry is None:
        return None
    own = entry.weight()
    if own is None or own.data_ptr() != weight.data_ptr():
        return None
    if version_of(own) != entry.version:
        entry = _add(own)
    return entry.kept


def _add(weight: Tensor) -> _Entry:
    address = weight.data_ptr()

    def end(_: object) -> None:
        _entries.pop(address, None)
        _settle()  # before another weight lies there

    entry = _entries[address] = _Entry(weakref.ref(weight, end), version_of(weight), KeptWeight())
    return entry


def _settle() -> None:
    """What was found about blocks holds what they were kept in."""
    count_changes(bool(_entries))
    forget()
