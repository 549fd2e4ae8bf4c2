"""Where the time of a step goes, by kind of operation, as PyTorch's profiler sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from scalablevit.benchmarking.operations import KINDS, kind_of

MOST_ROWS = 40


@dataclass(frozen=True, kw_only=True)
class TimeRow:
    """Time of a step that goes to one name.

    Args:
        name: Of a kind, an operation or a kernel.
        seconds: Per step, what it calls left out.
        calls: Per step.
    """

    name: str
    seconds: float
    calls: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where the time of a step goes.

    Args:
        clock: ``"cuda"``: the time of kernels, given to the operation that launched them; ``"cpu"``: of operations.
        kinds: In the order of `scalablevit.benchmarking.operations.KINDS`.
        operations: PyTorch's, the longest first, `MOST_ROWS` at most.
        kernels: On a GPU its kernels, likewise.
        kernel_seconds: Of all kernels; what operations are given adds up to it, too.
    """

    clock: str
    kinds: tuple[TimeRow, ...]
    operations: tuple[TimeRow, ...]
    kernels: tuple[TimeRow, ...]
    kernel_seconds: float

    @property
    def seconds(self) -> float:
        """Of a step, all kinds together."""
        return sum(row.seconds for row in self.kinds)


def profile_step(step: Callable[[], object], *, device: str, synchronise: Callable[[], object], steps: int) -> Profile:
    """Profiles some steps of what has been run before.

    Args:
        step: What is profiled.
        device: Where it runs.
        synchronise: Waits until the device has done what it was given.
        steps: How many; times are of one.
    """
    on_gpu = torch.device(device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(steps):
            step()
        synchronise()
    operations: list[TimeRow] = []
    kernels: list[TimeRow] = []
    for event in profiler.key_averages():
        is_kernel = event.device_type == DeviceType.CUDA
        time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if time:
            row = TimeRow(name=event.key, seconds=time / 1e6 / steps, calls=event.count / steps)
            (kernels if is_kernel else operations).append(row)
    return Profile(
        clock="cuda" if on_gpu else "cpu",
        kinds=_by_kind(operations),
        operations=_longest(operations),
        kernels=_longest(kernels),
        kernel_seconds=sum(row.seconds for row in kernels),
    )


def _by_kind(rows: list[TimeRow]) -> tuple[TimeRow, ...]:
    found = []
    for kind in KINDS:
        mine = [row for row in rows if kind_of(row.name) == kind]
        if mine:
            seconds, calls = sum(row.seconds for row in mine), sum(row.calls for row in mine)
            found.append(TimeRow(name=kind, seconds=seconds, calls=calls))
    return tuple(found)


def _longest(rows: list[TimeRow]) -> tuple[TimeRow, ...]:
    return tuple(sorted(rows, key=lambda row: -row.seconds)[:MOST_ROWS])
