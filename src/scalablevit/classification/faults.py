"""What goes wrong in a run though nobody made a mistake, in words that say what to do."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import torch

from scalablevit.classification.configuration import TrainConfig
from scalablevit.images import UnreachableStoreError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a signal that ends a worker usually means, by the words that the C library has for it.
_CAUSES = {
    "Killed": "usually by the system, because memory ran out: lower --workers or --memory-mb",
    "Bus error": "usually because shared memory ran out: lower --workers, or give the container more (--shm-size)",
    "Segmentation fault": "a defect in a library that reads images: --workers 0 shows where",
    "Aborted": "a defect in a library that reads images: --workers 0 shows where",
    "Terminated": "from outside",
}


class TrainingFault(RuntimeError):  # noqa: N818 - nobody's mistake
    """A run ended before its time; the message says why, and how to go on."""


def explain(error: BaseException, config: TrainConfig, folder: Path, *, is_saved: bool = True) -> TrainingFault | None:
    """An error of the machine in words for people; None if it is something else.

    Args:
        error: What was raised.
        config: The options of the run, filled in.
        folder: The run folder.
        is_saved: Whether there is a state that the run can go on from.
    """
    if is_worker_death(error):
        # PyTorch's loader wraps the error that has the cause in one that has not.
        problem = describe_worker_death(str(error.__cause__ if is_worker_death(error.__cause__) else error), config)
    elif is_shared_memory_full(error):
        problem = f"shared memory is full: lower --workers (now {config.workers}), or give the container more of it"
    elif is_lost_process(error):
        problem = "another process of the run has ended, and has said why, here or in its own output"
    elif isinstance(error, UnreachableStoreError):
        problem = describe_unreachable(error)
    elif is_disk_full(error):
        problem = f"there is no room left to write to {folder} ({_first_line(error)}): make room"
    elif is_out_of_memory(error):
        problem = describe_out_of_memory(error, config)
    else:
        return None
    hint = f"What was saved before is whole; to go on: {how_to_go_on(folder)}" if is_saved else "Nothing was saved yet"
    return TrainingFault(f"{problem}. {hint}")


def how_to_go_on(folder: Path) -> str:
    """The command that resumes a run."""
    return f"scalablevit train --resume {folder}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, an accelerator's or the machine's."""
    words = "can't allocate memory|Cannot allocate memory|not enough memory|out of memory|std::bad_alloc"
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or getattr(error, "errno", None) == errno.ENOMEM
        or (isinstance(error, RuntimeError) and re.search(words, str(error)) is not None)
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether a file could not be written because there was no room for it."""
    # Safetensors has an exception of its own, which holds the system's words.
    return getattr(error, "errno", None) in _NO_ROOM or "No space left on device" in str(error)


def is_shared_memory_full(error: BaseException) -> bool:
    """Whether workers could not hand over a batch."""
    return isinstance(error, RuntimeError) and re.search(r"</torch_|/dev/shm", str(error)) is not None


def is_worker_death(error: BaseException | None) -> bool:
    """Whether a process that reads images has ended."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def is_lost_process(error: BaseException) -> bool:
    """Whether another process of a run that has several is gone."""
    lost = "Connection (closed|reset|refused)|gloo/|ProcessGroup|NCCL|Broken pipe.*rank|Timed out after .* waiting for"
    return isinstance(error, RuntimeError) and re.search(lost, str(error)) is not None


def describe_worker_death(message: str, config: TrainConfig) -> str:
    """What PyTorch says of a worker that died, and what it usually means."""
    signalled = re.search(r"is killed by signal: (.+?)\. ", f"{message.splitlines()[0]} ")
    code = re.search(r"exit code (-?\d+)", message)
    if signalled:
        cause = f"was killed ({signalled[1]}), {_CAUSES.get(signalled[1], 'from outside')}"
    else:
        cause = f"ended{f' with exit code {code[1]}' if code else ''}: --workers 0 shows the error"
    process = re.search(r"\(pid(?:\(s\))? ([\d, ]+)\)", message)
    return f"one of the {config.workers} processes that read images{f' (pid {process[1]})' if process else ''} {cause}"


def describe_unreachable(error: UnreachableStoreError) -> str:
    """What cannot be reached; from another process the message comes below the places in the code."""
    return " ".join(str(error).rpartition(f"{UnreachableStoreError.__name__}: ")[2].split())


def describe_out_of_memory(error: BaseException, config: TrainConfig) -> str:
    """What can be lowered where memory ran out."""
    assert config.size is not None
    height, width = config.size
    if "DataLoader worker" in str(error):
        return f"a process that reads images ran out of memory: lower --workers (now {config.workers})"
    advice = (
        f"begin another run with a lower --batch-size (now {config.batch_size}; raise --accumulate, now"
        f" {config.accumulate}, by as much, and the result is nearly the same) or --size (now {height} {width})"
    )
    if not config.grad_checkpointing:
        advice = f"resume with --grad-checkpointing true, which takes longer, or {advice}"
    return f"out of memory ({_first_line(error)}): {advice}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0]
