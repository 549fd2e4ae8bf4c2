"""Time: contenders in turn, and the rate at which the machine multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

MATRIX_SIZE = 3072
SECONDS_PER_TURN = 0.05  # what is faster runs several times in its turn


def interleaved_seconds(
    steps: Mapping[str, Callable[[], object]], rounds: int, synchronise: Callable[[], object]
) -> dict[str, list[float]]:
    """Seconds per step of each contender in each round. They run in turn, so that what else the machine does hits all.

    Args:
        steps: What each contender does; each has run before, so that nothing is made or compiled for the first time.
        rounds: How many turns each has.
        synchronise: Waits until the device has done what it was given.
    """
    repeats = {}
    for name, step in steps.items():
        seconds = _seconds(step, 1, synchronise)
        repeats[name] = max(1, round(SECONDS_PER_TURN / seconds))
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            found[name].append(_seconds(step, repeats[name], synchronise))
    return found


def matrix_rate(
    device: torch.device, dtype: torch.dtype, synchronise: Callable[[], object], attempts: int = 3
) -> float:
    """Floating-point operations per second: the best of some products of square matrices of 3072."""
    left, right = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device).to(dtype) for _ in range(2))
    _seconds(lambda: left @ right, 1, synchronise)
    repeats = 1 if device.type == "cpu" else 10
    best = min(_seconds(lambda: left @ right, repeats, synchronise) for _ in range(attempts))
    return float(2 * MATRIX_SIZE**3 / best)


def _seconds(step: Callable[[], object], repeats: int, synchronise: Callable[[], object]) -> float:
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronise()
    return (time.perf_counter() - start) / repeats
