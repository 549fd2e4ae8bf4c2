"""Dropout as the native kernels do it: by masks that follow from a seed, so that nothing is kept of them."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Dropout(NamedTuple):
    """Which elements of rows are zeroed: what the seed, the number of a row and the place in it say.

    What is left is multiplied by 1 / (1 - probability), and what is zeroed is 0 whatever it was.

    Args:
        probability: That an element is zeroed, below 1; 0 for none.
        seed: From 0 to 2^63 - 1.
    """

    probability: float = 0.0
    seed: int = 0

    @classmethod
    def drawn(cls, probability: float) -> Dropout:
        """With a seed from PyTorch's generator: what `torch.manual_seed` repeats, and checkpointing restores."""
        return cls(probability, int(torch.randint(2**63 - 1, (), device="cpu"))) if probability > 0.0 else NO_DROPOUT

    def another(self) -> Dropout:
        """As likely, and of other elements."""
        return Dropout(self.probability, self.seed ^ 1) if self.probability > 0.0 else self

    def factors(self, rows: int, width: int) -> Tensor:
        """What so many rows are multiplied with, (rows, width) in float32: `dropout.h` in PyTorch's operations."""
        bits = self.seed + torch.arange(1, rows + 1, device="cpu").unsqueeze(1) * _signed(0x9E3779B97F4A7C15)
        bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
        bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
        bits ^= _shifted(bits, 31)
        first, second = bits & _LOWER, _shifted(bits, 32)
        bits = first + torch.arange(width, device="cpu") & _LOWER
        bits = (bits ^ bits >> 16) * 0x7FEB352D & _LOWER
        bits ^= second
        bits = (bits ^ bits >> 15) * 0x846CA68B & _LOWER
        bits ^= bits >> 16
        least = int(self.probability * 2**32)
        return torch.where(bits >= least, 1.0 / (1.0 - least / 2**32), 0.0)

    def applied_to(self, x: Tensor) -> Tensor:
        """x, (..., width), as the kernels leave it, in operations that autograd records."""
        if self.probability == 0.0:
            return x
        width = x.shape[-1]
        return x * self.factors(x.numel() // max(width, 1), width).to(x.dtype).view(x.shape)

    def arguments(self) -> tuple[Any, Any]:
        """For a kernel."""
        return ctypes.c_uint64(self.seed), ctypes.c_double(self.probability)


NO_DROPOUT = Dropout()

_LOWER = 2**32 - 1


def _signed(bits: int) -> int:
    """The number that has these 64 bits."""
    return bits - 2**64 if bits >= 2**63 else bits


def _shifted(bits: Tensor, by: int) -> Tensor:
    """64 bits to the right, with zeros from the left."""
    return (bits >> by) & (2 ** (64 - by) - 1)
