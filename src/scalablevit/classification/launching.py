"""Starting the other processes of a run on one machine, and seeing to it that none outlives the others.

They run the same command with LOCAL_RANK set, as those that Lightning's own launcher starts. That one kills the process
that people look at if another fails or has been told to end; here it ends by itself, with its message and exit code.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from scalablevit.classification.devices import Processes
from scalablevit.classification.stopping import StoppedBySignal

FAILED, STOPPED, INTERRUPTED = 3, 75, 130  # the command's exit codes
GRACE_S = 10.0  # for the first process to end by itself when another has
_POLL_S = 0.2


@contextmanager
def together(processes: Processes) -> Iterator[None]:
    """Starts the other processes of a run if nobody has, and ends them if this one fails.

    After a run that has come to its end they go on with the script that they, too, execute, but not without this one.

    Raises:
        ValueError: If they cannot be started, because Python is used interactively.
    """
    if not processes.is_first:
        logging.getLogger("scalablevit").setLevel(logging.ERROR)  # the first process warns of what all see
    if processes.launcher == "environment" and not processes.is_first:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True, name="parent-watch").start()
    if processes.count == 1 or processes.launcher is not None:
        yield
        return
    if hasattr(sys, "ps1") or sys.flags.interactive:
        raise ValueError(f"devices is {processes.count}, which needs a script or the command: here one device works")
    others = [_start(rank, processes.count) for rank in range(1, processes.count)]
    done = threading.Event()
    threading.Thread(target=_watch, args=(others, done), daemon=True, name="process-watch").start()
    try:
        yield
    except BaseException:
        done.set()
        _end(others, 2.0)
        raise
    done.set()


def exit_code(error: BaseException) -> int:
    """With which a process ends after an error that all have, and the first one reports; the command's own."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return STOPPED if isinstance(error, StoppedBySignal) else FAILED


def _start(rank: int, count: int) -> subprocess.Popen[bytes]:
    if rank == 1:
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()), NODE_RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(count)
        )
    return subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]], env={**os.environ, "LOCAL_RANK": str(rank)}, stdin=subprocess.DEVNULL
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _watch(others: Sequence[subprocess.Popen[bytes]], done: threading.Event) -> None:
    """Ends this process, which may hang in a call that waits for one that is no more."""
    while not done.wait(_POLL_S):
        for rank, other in enumerate(others, 1):
            if other.poll() and not done.wait(GRACE_S):
                message = f"scalablevit: error: process {rank} of {len(others) + 1} has ended with {other.returncode}"
                os.write(2, f"{message}; it may have said why above\n".encode())
                _end(others, 0.0)
                os._exit(other.returncode if other.returncode in (STOPPED, INTERRUPTED) else FAILED)


def _end(others: Sequence[subprocess.Popen[bytes]], patience_s: float) -> None:
    """Waits for processes to end, and ends those that do not."""
    ends = time.monotonic() + patience_s
    for other in others:
        try:
            other.wait(max(ends - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            other.kill()
            other.wait()


def _end_with(parent: int) -> None:
    """Ends this process when the one that has started it is gone, whatever it waits for."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(FAILED)
