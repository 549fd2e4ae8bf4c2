"""Hugging Face's sets as streams: Parquet files, on the hub or in a folder, of which what is in use is kept on disk.

Parquet files say how many rows they have, in groups that can be fetched one by one. So images have positions here as
anywhere else, and all that rests on them holds for streams, too: groups of rows are the stretches of an epoch's order.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from scalablevit.classification.images import LabelledImages
from scalablevit.classification.readers.hugging_face import columns_of, label_images, load_from
from scalablevit.classification.readers.image_set import ImageSet
from scalablevit.classification.readers.notation import SetName
from scalablevit.classification.stopping import StoppedBySignal
from scalablevit.classification.stretches import stretches_at_once
from scalablevit.extras import require_extra
from scalablevit.images import UnreachableStoreError

WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before what failed is tried again
THREADS = 16  # that read what files hold before the first image
_LOCKS = 16  # files in a folder that say who is fetching
_ABANDONED = 3600.0  # seconds after which what was never finished will not be

Found = TypeVar("Found")


@dataclass(frozen=True)
class RowGroup:
    """Rows of a Parquet file that are fetched together.

    Args:
        file: Its address, or path.
        metadata: What the end of the file says.
        number: Which group of the file it is.
        count: Its rows.
    """

    file: str
    metadata: Any
    number: int
    count: int

    def read(self, columns: Sequence[str]) -> Any:
        """Some columns, fetched."""
        import pyarrow.parquet

        with _content(self.file) as content:
            file = pyarrow.parquet.ParquetFile(content, metadata=self.metadata, pre_buffer=True)
            return file.read_row_group(self.number, columns=list(columns))


class StreamStore:
    """Images in a column of Parquet files; groups of rows are fetched when they are asked for, and kept for a while.

    Args:
        where: How people are told of the images.
        groups: All rows, in their order.
        key: The column.
        folder: Where groups are kept; processes that are given the same one share them. The oldest go first.
    """

    def __init__(self, where: str, groups: Sequence[RowGroup], key: str, folder: Path) -> None:
        self.where = where
        self.groups = groups
        self.key = key
        self.folder = folder
        self.firsts = [0, *accumulate(group.count for group in groups)]
        # Readers run ahead of training, as far again as images are mixed; and evaluation begins with others.
        self.most = 2 * stretches_at_once([group.count for group in groups]) + 8
        self._met: set[int] = set()

    def read(self, index: int) -> bytes:
        """The file in a row; empty if there is none.

        Raises:
            UnreachableStoreError: If it cannot be fetched, or not be kept.
        """
        number = bisect_right(self.firsts, index) - 1
        cell = self._group(number)[index - self.firsts[number]].as_py()
        return bytes((cell.get("bytes") if isinstance(cell, dict) else cell) or b"")

    def name(self, index: int) -> str:
        """Where, and which row."""
        return f"{self.where}/{index}"

    def _group(self, number: int) -> Any:
        file = self.folder / f"{number:08}.arrow"
        kept = self._kept(number, file)
        return insistently(partial(self._fetch, number, file), self.groups[number].file) if kept is None else kept

    def _kept(self, number: int, file: Path) -> Any:
        """A group that was fetched before, which is looked through when this process first meets it; or None."""
        column = _open(file, thoroughly=number not in self._met)
        if column is not None:
            self._met.add(number)
        return column

    def _fetch(self, number: int, file: Path) -> Any:
        from filelock import FileLock

        lock = self.folder / f"{number % _LOCKS}.lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.touch()
        except OSError as error:
            raise self._unkept(error) from error
        with FileLock(lock):  # let go of before it is tried again, so that nobody waits for another's failure
            if (kept := self._kept(number, file)) is not None:  # another process was first
                return kept
            rows = self.groups[number].read([self.key]).combine_chunks()
            try:
                _write(file, rows)
                self._make_room()
            except OSError as error:
                raise self._unkept(error) from error
        self._met.add(number)
        return rows.column(self.key)

    def _unkept(self, error: OSError) -> UnreachableStoreError:
        return UnreachableStoreError(
            f"images of {self.where} cannot be kept in {self.folder} ({in_one_line(error)}): make room there, or name"
            " another folder behind a colon"
        )

    def _make_room(self) -> None:
        kept = sorted(self.folder.glob("*.arrow"), key=_changed)
        unfinished = [file for file in self.folder.glob("*.unfinished") if time.time() - _changed(file) > _ABANDONED]
        for file in kept[: max(len(kept) - self.most, 0)] + unfinished:
            file.unlink(missing_ok=True)


def open_streamed_set(name: SetName, target_key: str | None) -> ImageSet:
    """A set of Hugging Face's whose images are fetched as they are needed.

    Args:
        name: On the hub, or a folder of Parquet files. `folder` is where what is in use is kept, for all processes that
            are given it; None: a temporary one.
        target_key: The column of the labels; None: the only one of classes, or the one called label.

    Raises:
        MissingExtraError: If the library is not installed.
        ValueError: If there is no such set, its files are not Parquet, or it has no column of images or labels.
        UnreachableStoreError: If its files cannot be read.
    """
    require_extra("datasets", "datasets")
    import datasets

    builder = load_from(name, lambda: datasets.load_dataset_builder(name.name))
    files = {str(split): [str(file) for file in paths] for split, paths in (builder.config.data_files or {}).items()}
    other = next((file for paths in files.values() for file in paths if not file.endswith(".parquet")), None)
    if other is not None or not files:
        what = f"{other} is none" if other else "it has none"
        raise ValueError(f"{name}: Parquet files can be streamed, and {what}: give hfds/{name.name}, which reads all")
    features = builder.info.features
    splits = {
        split: partial(_read_part, name, split, paths, features, target_key) for split, paths in files.items() if paths
    }
    return ImageSet(name=str(name), splits=splits)


def insistently(action: Callable[[], Found], what: str) -> Found:
    """What an action gives, which is tried again after a while where it fails for a reason that may pass.

    Raises:
        UnreachableStoreError: If it has failed once more than there are `WAITS`, or what is read is not there.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except (UnreachableStoreError, StoppedBySignal, MemoryError):
            raise
        except FileNotFoundError as error:
            raise UnreachableStoreError(f"{what} is not there ({in_one_line(error)})") from error
        except Exception as error:  # each protocol has errors of its own
            if wait is None:
                tried = f"tried {len(WAITS) + 1} times ({type(error).__name__}: {in_one_line(error)})"
                raise UnreachableStoreError(f"{what} cannot be read, {tried}: see that it can be reached") from error
        time.sleep(wait)
    raise AssertionError("the last time returns or raises")


def in_one_line(error: Exception) -> str:
    """What an error says."""
    return " ".join(str(error).split())


def _read_part(name: SetName, split: str, files: list[str], features: Any, target_key: str | None) -> LabelledImages:
    where = f"{name}/{split}"
    with ThreadPoolExecutor(THREADS) as pool:
        metadata = list(pool.map(_metadata, files))
        image_key, key, kind, is_list = columns_of(where, features or _features(metadata[0]), target_key)
        for file, of_file in zip(files, metadata, strict=True):
            for name_of_column in (image_key, key):
                if name_of_column not in of_file.schema.to_arrow_schema().names:
                    raise ValueError(
                        f"{file} has no column {name_of_column}, which other files of {where} have: mend it"
                    )
        groups = [
            RowGroup(file, of_file, number, of_file.row_group(number).num_rows)
            for file, of_file in zip(files, metadata, strict=True)
            for number in range(of_file.num_row_groups)
        ]
        columns = pool.map(lambda group: insistently(partial(group.read, [key]), group.file).column(key), groups)
        values = [value for column in columns for value in column.to_pylist()]
        versions = list(pool.map(_version, files))
    known = sha256(repr((versions, image_key)).encode()).hexdigest()[:16]
    folder = (name.folder or _temporary_folder()) / f"{split}-{known}"
    store = StreamStore(where, groups, image_key, folder.absolute())
    images = label_images(store, values, kind, where, is_list=is_list)
    return replace(images, stretches=tuple(group.count for group in groups))


def _metadata(file: str) -> Any:
    import pyarrow.parquet

    def read() -> Any:
        try:
            with _content(file) as content:
                return pyarrow.parquet.read_metadata(content)
        except pyarrow.ArrowInvalid as error:
            raise UnreachableStoreError(f"{file} is no Parquet file ({in_one_line(error)}): replace it") from error

    return insistently(read, file)


def _content(file: str) -> Any:
    """A file, of which what is read is fetched, and nothing ahead: pyarrow knows what it needs."""
    import fsspec

    system, path = fsspec.url_to_fs(file)
    return system.open(path, "rb", cache_type="none")


def _version(file: str) -> tuple[Any, ...]:
    """What changes when the content does; the addresses of the hub hold a revision."""
    import fsspec

    system, path = fsspec.url_to_fs(file)
    info = insistently(lambda: system.info(path), file)
    return file, *(info.get(key) for key in ("size", "mtime", "ETag"))


def _features(metadata: Any) -> Any:
    import datasets

    return datasets.Features.from_arrow_schema(metadata.schema.to_arrow_schema())


def _open(file: Path, *, thoroughly: bool) -> Any:
    """The column in a file, mapped into memory; None without one, or where it is found to be damaged."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as content:
            column = pyarrow.ipc.open_file(content).read_all().column(0)
        if thoroughly:
            column.validate(full=True)  # else Arrow ends the process where offsets are wrong
        return column
    except (OSError, pyarrow.ArrowException):
        return None


def _write(file: Path, rows: Any) -> None:
    import pyarrow

    unfinished = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}.unfinished")
    try:
        with pyarrow.OSFile(str(unfinished), "wb") as content, pyarrow.ipc.new_file(content, rows.schema) as writer:
            writer.write_table(rows)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # another process made room
        return 0.0


@cache
def _temporary_folder() -> Path:
    """One for this process and those that read for it, removed when it ends."""
    folder, owner = Path(tempfile.mkdtemp(prefix="scalablevit-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # and not one that was forked
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
