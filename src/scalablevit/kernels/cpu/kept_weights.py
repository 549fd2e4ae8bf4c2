"""Weights that kernels keep packed from call to call, as a user has said that they do not change.

Before they multiply, kernels lay weights out as their products read them, in the type of the products. All weights come
from memory for that, which with one image takes up to a sixth of the time (docs/log.md).
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Iterable
from functools import partial

import torch
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


class _Entry:
    """A weight that is to be kept, for as long as its memory is there."""

    def __init__(self, weight: Tensor) -> None:
        self.owner = id(weight)
        # Of the memory, not of the tensor, which may go to other memory, and which PyTorch does not swap with another
        # while someone has a weak reference to it.
        self.memory = weakref.ref(weight.untyped_storage(), partial(_end, weight.data_ptr()))
        self.version = version_of(weight)
        self.kept: KeptWeight | None = None  # until it is asked for


_entries: dict[int, _Entry] = {}  # by the address of the weight
_changing = threading.RLock()  # a memory may end anywhere


def keep(weights: Iterable[Tensor]) -> None:
    """From now on these are kept, for as long as they live where they lie.

    Left out are those that are not on a CPU, that count no changes, and that lie where another one lies, whose changes
    are not counted as theirs.
    """
    with _changing:
        for weight in _readable(weights):
            address = weight.data_ptr()
            before = _entries.pop(address, None)
            if before is None or before.owner == id(weight):
                _entries[address] = _Entry(weight)
        _settle()


def let_go(weights: Iterable[Tensor]) -> None:
    """These are kept no longer."""
    with _changing:
        for weight in _readable(weights):
            _entries.pop(weight.data_ptr(), None)
        _settle()


def kept_weight(weight: Tensor) -> KeptWeight | None:
    """Where a weight is kept; None where it is packed at each call. One that was changed is as good as a new one."""
    if not _entries:
        return None
    with _changing:
        entry = _entries.get(weight.data_ptr())
        if entry is None:
            return None
        if entry.kept is None or version_of(weight) != entry.version:
            entry.version, entry.kept = version_of(weight), KeptWeight()
        return entry.kept


def _readable(weights: Iterable[Tensor]) -> list[Tensor]:
    return [
        one
        for one in weights
        if type(one) in {Tensor, nn.Parameter}
        and one.is_cpu
        and one.layout is torch.strided
        and one.numel() > 0
        and not one.is_inference()
    ]


def _end(address: int, _: object) -> None:
    """The memory is about to go: nothing is known of it, before another weight lies there."""
    with _changing:
        _entries.pop(address, None)
        _settle()


def _settle() -> None:
    """What was found about blocks holds what they were kept in."""
    count_changes(bool(_entries))
    forget()
