"""Time: contenders in turn, and the rates at which the machine multiplies matrices and copies memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

MATRIX_SIZE = 3072
SMALL_MATRIX_SIZE = 512
LONGEST_PRODUCT_S = 10.0
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
    device: torch.device,
    dtype: torch.dtype,
    synchronise: Callable[[], object],
    attempts: int = 3,
    size: int = MATRIX_SIZE,
) -> float:
    """Floating-point operations per second: the best of some products of square matrices.

    Of matrices of 512 x 512 where those of MATRIX_SIZE would take longer than ten seconds each: PyTorch has plain loops
    for types that a processor does not know.
    """

    def seconds(size: int, attempts: int) -> float:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        repeats = 1 if device.type == "cpu" else 10
        return min(_seconds(lambda: left @ right, repeats, synchronise) for _ in range(attempts))

    if size == MATRIX_SIZE and device.type == "cpu":
        expected = seconds(SMALL_MATRIX_SIZE, 5) * (size / SMALL_MATRIX_SIZE) ** 3
        size = SMALL_MATRIX_SIZE if expected > LONGEST_PRODUCT_S else size
    return 2 * size**3 / seconds(size, attempts + 1)  # the first may make what the others find


def copy_rate(device: torch.device, size_bytes: int, synchronise: Callable[[], object], attempts: int = 5) -> float:
    """Bytes per second, read and written together: the best of some copies of so many random bytes."""
    source = torch.randint(256, (size_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    _seconds(lambda: target.copy_(source), 1, synchronise)
    best = min(_seconds(lambda: target.copy_(source), 10, synchronise) for _ in range(attempts))
    return 2 * size_bytes / best


def launch_seconds(device: torch.device, synchronise: Callable[[], object], launches: int = 2000) -> float:
    """Seconds that one operation takes which does next to nothing: what starting it costs."""
    one = torch.zeros(1, device=device)
    _seconds(lambda: one.add_(1), 10, synchronise)
    return _seconds(lambda: one.add_(1), launches, synchronise)


def _seconds(step: Callable[[], object], repeats: int, synchronise: Callable[[], object]) -> float:
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronise()
    return (time.perf_counter() - start) / repeats
