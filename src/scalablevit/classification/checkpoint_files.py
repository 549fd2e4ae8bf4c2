"""Checkpoints as files that are there whole or not at all, and that tell whether they are what was written.

A checkpoint is what `torch.save` writes, a ZIP archive, with a SHA-256 sum as the archive's comment: its last bytes,
which readers of archives skip. So `torch.load` reads it, and one that is cut short or changed is recognised.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

_SEAL_START = b"sha256:"
_SEAL_BYTES = len(_SEAL_START) + 64
_CHUNK_BYTES = 1 << 20


def write_checkpoint(content: Mapping[str, Any], file: Path, previous: Path | None = None) -> None:
    """Writes a checkpoint beside its place, makes sure that it is on the disk, and moves it there.

    Args:
        content: What `torch.save` can write.
        file: Where it goes.
        previous: Where what is there now goes; None: it is replaced.

    Raises:
        OSError: If it cannot be written. Then `file` and `previous` are as they were.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    archive = buffer.getbuffer()
    archive[-2:] = _SEAL_BYTES.to_bytes(2, "little")  # an archive without a comment ends with the comment's length, 0
    temporary = partial_file(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as stream:
            stream.write(archive)
            stream.write(_SEAL_START + sha256(archive).hexdigest().encode())
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if previous is not None and file.exists():
        file.replace(previous)
    temporary.replace(file)
    _synchronise(file.parent)


def partial_file(file: Path) -> Path:
    """Where a checkpoint is while it is written."""
    return file.with_name(f".{file.name}.partial")


def damage(file: Path) -> str:
    """What is wrong with a checkpoint's file; empty if nothing is."""
    digest = sha256()
    try:
        with file.open("rb") as stream:
            left = stream.seek(0, os.SEEK_END) - _SEAL_BYTES
            stream.seek(0)
            while left > 0:
                chunk = stream.read(min(left, _CHUNK_BYTES))
                digest.update(chunk)
                left -= len(chunk)
            seal = stream.read()
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if not seal.startswith(_SEAL_START):
        return "it ends without a checksum, so it is not complete"
    return "" if seal == _SEAL_START + digest.hexdigest().encode() else "its checksum does not fit what it holds"


def read_checkpoint(file: Path) -> dict[str, Any]:
    """What a checkpoint holds.

    Raises:
        ValueError: If it is damaged.
    """
    problem = damage(file)
    if not problem:
        try:
            return dict(torch.load(file, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
            problem = str(error).splitlines()[0]
    raise ValueError(f"{file} is damaged ({problem}): start the run again with --overwrite")


def newest_whole(files: Sequence[Path]) -> Path | None:
    """The first of the files, from the newest to the oldest, that is whole. Damaged ones before it are told of.

    Returns:
        The file; None if none of them is there.

    Raises:
        ValueError: If all that are there are damaged.
    """
    damaged: list[str] = []
    for file in files:
        if not file.exists():
            continue
        problem = damage(file)
        if not problem:
            if damaged:
                logger.warning("%s; going on from %s, the one before", "; ".join(damaged), file)
            return file
        damaged.append(f"{file} is damaged ({problem})")
    if damaged:
        raise ValueError(f"{'; '.join(damaged)}: there is nothing to go on from; start the run again with --overwrite")
    return None


def _synchronise(folder: Path) -> None:
    """Makes sure that the new names of files are on the disk; not everywhere can a folder be opened for that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
