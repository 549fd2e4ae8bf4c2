"""WebDataset shards: tar files, in which files of one name and different endings are one sample.

Shards on a disk need not be streamed: where each file lies in its tar file is read once, and then any sample can be
read by its position. So an epoch has its own order over all shards, each sample comes once however many processes and
machines read, and a run goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scalablevit.classification.class_folders import IMAGE_SUFFIXES
from scalablevit.classification.images import LabelledImages, normal_name
from scalablevit.classification.readers.image_set import (
    SPLIT_NAMES,
    ImageSet,
    number_labels,
    read_class_names,
    stored_images,
)
from scalablevit.classification.readers.notation import REMOTE, SetName

logger = logging.getLogger(__name__)

INFO_FILES = ("_info.json", "info.json")  # timm's


@dataclass(frozen=True, slots=True)
class Sample:
    """Where an image lies.

    Args:
        shard: Which of the tar files holds it.
        start: Its first byte in it.
        size: In bytes.
        member: Its name in the tar file.
    """

    shard: int
    start: int
    size: int
    member: str


class ShardStore:
    """The images in tar files.

    Args:
        shards: The tar files.
        samples: Where each image lies.
    """

    def __init__(self, shards: Sequence[Path], samples: Sequence[Sample]) -> None:
        self.shards = tuple(shards)
        self.samples = tuple(samples)

    def read(self, index: int) -> bytes:
        """The file of an image. It is opened anew, so that processes that were forked do not share its position."""
        sample = self.samples[index]
        with self.shards[sample.shard].open("rb") as file:
            file.seek(sample.start)
            return file.read(sample.size)

    def name(self, index: int) -> str:
        """The tar file, and the file in it."""
        sample = self.samples[index]
        return f"{self.shards[sample.shard]}/{sample.member}"


def open_shards(name: SetName, target_key: str | None) -> ImageSet:
    """The set in a folder of shards.

    Its parts are those of timm's ``_info.json``; without that file folders, such as ``train/``, or else what the names
    of shards say before their numbers, as in ``train-000017.tar``.

    Args:
        name: `name.name` is the folder.
        target_key: The field of a sample's ``.json`` that holds its label; None: its file ``.cls`` does.

    Raises:
        ValueError: If there is no such folder, or no shard in it.
    """
    folder = Path(name.name)
    if "::" in name.name or name.name.startswith(REMOTE):
        raise ValueError(
            f"{name} is not on a disk: shards are read by position, so copy or mount them, and name a folder"
        )
    if folder.suffix == ".tar" and not folder.is_dir() and folder.parent.is_dir():
        raise ValueError(f"{name} names shards: give their folder, wds/{folder.parent}, of which all are read")
    if name.folder is not None or not folder.is_dir():
        raise ValueError(f"{name} names no folder: give wds/FOLDER, a folder with shards (*.tar)")
    splits = _splits(folder)
    if not splits:
        raise ValueError(f"{folder} holds no shards (*.tar): give the folder that does")
    if not any((folder / info).is_file() for info in INFO_FILES):
        _tell_of_gaps(splits)
    return ImageSet(
        name=str(name),
        splits={split: partial(_read_part, folder, split, shards, target_key) for split, shards in splits.items()},
    )


def index_shard(path: Path, target_key: str | None = None) -> Iterator[tuple[str, int, int, str]]:
    """The samples of a shard, each as the name of its image, the first byte, the size, and the label.

    Raises:
        ValueError: If the shard is no uncompressed tar file, or a sample has no image or no label.
    """
    label_ending = "cls" if target_key is None else "json"
    files: dict[str, dict[str, tarfile.TarInfo]] = defaultdict(dict)
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, ending = _key_and_ending(member.name)
                if member.isfile() and ending:
                    files[key][ending] = member
            for key, found in files.items():
                image = next((member for ending, member in found.items() if f".{ending}" in IMAGE_SUFFIXES), None)
                label = archive.extractfile(found[label_ending]) if label_ending in found else None
                if image is None or label is None:
                    missing = "image" if image is None else f"label (.{label_ending})"
                    endings = ", ".join(f".{ending}" for ending in found)
                    raise ValueError(f"{path}: the sample {key} has no {missing}, but {endings}: mend or remove it")
                yield image.name, image.offset_data, image.size, _label(label.read(), path, key, target_key)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an uncompressed tar file ({error}): replace it") from error


def _key_and_ending(name: str) -> tuple[str, str]:
    """As WebDataset parts names: at the first point of the file's own name."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return folder + slash + stem, ending.lower() if stem else ""


def _label(content: bytes, path: Path, key: str, target_key: str | None) -> str:
    sample = f"{path}: the sample {key}"
    try:
        text = content.decode("utf-8")
        fields = {} if target_key is None else json.loads(text)
    except UnicodeDecodeError as error:
        ending = "cls" if target_key is None else "json"
        raise ValueError(f"{sample}: its .{ending} is not in UTF-8 ({error.reason}): mend or remove it") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{sample}: its .json is none ({error}): mend or remove it") from error
    if target_key is not None:
        if not isinstance(fields, dict):
            raise ValueError(f"{sample}: its .json has no fields: mend or remove it")
        if target_key not in fields:
            raise ValueError(f"{sample} has no field {target_key!r}, but {', '.join(fields)}")
        text = "" if fields[target_key] is None else str(fields[target_key])
    if not text.strip():
        raise ValueError(f"{sample} has an empty label: give it one, or remove it")
    return normal_name(text)


def _read_part(folder: Path, split: str, shards: Sequence[Path], target_key: str | None) -> LabelledImages:
    with ThreadPoolExecutor(max_workers=8) as pool:  # what takes long is the disk
        indexed = list(pool.map(lambda shard: list(index_shard(shard, target_key)), shards))
    samples = [
        Sample(shard, start, size, member) for shard, found in enumerate(indexed) for member, start, size, _ in found
    ]
    values: Any = [label for found in indexed for *_, label in found]
    if all(re.fullmatch(r"-?\d+", value) for value in values):
        values = [int(value) for value in values]
    labels, classes = number_labels(values, read_class_names(folder), f"{folder}, {split}")
    return stored_images(ShardStore(shards, samples), labels, classes)


def _splits(folder: Path) -> dict[str, list[Path]]:
    for name in INFO_FILES:
        if (folder / name).is_file():
            return _splits_of_info(folder, folder / name)
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith(".") and (inside := sorted(entry.glob("*.tar"))):
            found[entry.name] = inside
    for shard in sorted(folder.glob("*.tar")):
        words = re.split(r"[-_.]", re.sub(r"[-_.]?\d+$", "", shard.stem))
        found.setdefault(next((word for word in words if word.lower() in SPLIT_NAMES), words[-1] or "all"), []).append(
            shard
        )
    return found


def _tell_of_gaps(splits: Mapping[str, Sequence[Path]]) -> None:
    """Warns of shards that are missing in a row of numbers, as where a download was not finished.

    Where more are missing than there are, the numbers are taken for something else, such as dates.
    """
    rows: dict[tuple[Path, str, int], dict[int, Path]] = defaultdict(dict)
    for shard in (shard for shards in splits.values() for shard in shards):
        digits = re.search(r"\d*$", shard.stem)
        if digits and digits[0]:
            rows[shard.parent, shard.stem[: digits.start()], len(digits[0])][int(digits[0])] = shard
    for (parent, prefix, width), found in rows.items():
        row = range(min(found), max(found) + 1)
        missing = len(row) - len(found)
        if 0 < missing <= len(found):
            first = next(number for number in row if number not in found)
            logger.warning(
                "%s: %s missing in the row from %s to %s, %s the first of them: fetch them, if they are part of the"
                " set",
                parent,
                "1 shard is" if missing == 1 else f"{missing} shards are",
                found[row[0]].name,
                found[row[-1]].name,
                f"{prefix}{first:0{width}}.tar",
            )


def _splits_of_info(folder: Path, file: Path) -> dict[str, list[Path]]:
    try:
        info: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        splits = {split: [folder / name for name in facts["filenames"]] for split, facts in info["splits"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} does not name the shards of each split ({error!r}): mend or remove it") from error
    missing = next((shard for shards in splits.values() for shard in shards if not shard.is_file()), None)
    if missing is not None:
        raise ValueError(f"{missing}, which {file.name} names, is not there: fetch it, or mend {file.name}")
    return splits
