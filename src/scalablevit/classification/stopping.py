"""Signals that ask a run to end: it finishes the step that it is in, saves its state, and ends.

Batch systems send SIGTERM, or what they are told to, for example SIGUSR1, some time before they take a machine away.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # SIGUSR1 is not everywhere
GRACE_S = 30  # for workers: as long as a step may take


class StoppedBySignal(Exception):  # noqa: N818 - not an error
    """A run has ended because a signal asked it to; the message says where, and how to go on."""


class StopSignals:
    """What the signals that end a run do: raise at once, or, within `deferred`, be noted until a step is done.

    A second signal ends even a step that takes too long. Ctrl-C is deferred as well, and raises KeyboardInterrupt.

    Attributes:
        received: The signal that was noted, if any.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._is_deferred = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Has the signals handled here. In a thread that is not the main one Python cannot, and nothing is done."""
        before = self._install(STOPPING)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Has signals noted only; `check` is to be called between steps."""
        before = self._install((*STOPPING, signal.SIGINT))
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def take_over(self) -> None:
        """Takes the signals from whoever has put another handler in place."""
        self._install((*STOPPING, signal.SIGINT))

    def check(self, where: str) -> None:
        """Raises what a signal that was noted asks for; `where` says what has been saved.

        Raises:
            StoppedBySignal: After SIGTERM or SIGUSR1.
            KeyboardInterrupt: After Ctrl-C.
        """
        if self.received is not None:
            raise_for(self.received, where)

    def _install(self, numbers: tuple[int, ...]) -> dict[int, signal._HANDLER]:
        if threading.current_thread() is not threading.main_thread():
            return {}
        before = {number: signal.getsignal(number) for number in numbers}
        # A job in the background has Ctrl-C ignored, and a process may have been told to ignore others.
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
        for number in before:
            signal.signal(number, self._handle)
        return before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._is_deferred or self.received is not None:
            raise_for(signal.Signals(number), "at once")
        self.received = signal.Signals(number)


def raise_for(received: signal.Signals, where: str) -> None:
    """Raises what ends a run after a signal."""
    if received == signal.SIGINT:
        raise KeyboardInterrupt
    raise StoppedBySignal(f"stopped by {received.name}, {where}")


def shield_worker(worker: int) -> None:
    """Lets a process that reads images outlive the signals, so that the step in progress gets its images.

    Batch systems and terminals send signals to all processes of a run. SIGTERM still ends a worker, but later.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_S) and None)
