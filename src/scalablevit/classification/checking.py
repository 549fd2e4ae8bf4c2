"""Looking through a data set before it is trained on: what is there, and what is wrong with it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from scalablevit.classification.images import LabelledImages
from scalablevit.classification.machine_checks import available_cores
from scalablevit.classification.sources import Parts, find_training_data, left_out_files
from scalablevit.images import ImagePlace, read_header, read_image

IMBALANCE = 10  # the largest class to the smallest; from here on it is worth a word


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What is in a data set.

    Args:
        counts: For ``"train"`` and ``"val"``, the images of each class.
        images: How many images there are.
        drawn: Whether the validation images are drawn at random, since the data do not tell them apart.
        unreadable: Images that cannot be read, with the reasons.
        shared: Groups of files with the same content, of which one is trained on and another validated with.
        repeated: Groups of files with the same content among the images to train on.
        conflicting: Groups of files with the same content and different labels.
        ignored: Files in class folders that are no images by their names.
        smallest: Height and width of the image with the fewest pixels.
        median: Median height and width.
        largest: Height and width of the image with the most pixels.
        grey: How many images are grey.
        several: Whether an image may have several labels.
    """

    counts: dict[str, dict[str, int]]
    images: int
    drawn: bool
    unreadable: dict[str, str]
    shared: tuple[tuple[str, ...], ...]
    repeated: tuple[tuple[str, ...], ...]
    conflicting: tuple[tuple[str, ...], ...]
    ignored: tuple[str, ...]
    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    grey: int
    several: bool = False

    @property
    def missing(self) -> tuple[str, ...]:
        """Classes without validation images."""
        return tuple(name for name, count in self.counts["val"].items() if not count)

    @property
    def imbalance(self) -> float:
        """How many times more images the largest class has than the smallest that has any, to train on."""
        counts = [count for count in self.counts["train"].values() if count]
        return max(counts, default=1) / min(counts, default=1)

    def problems(self) -> list[str]:
        """What is wrong, a line each; nothing if all is well."""
        found = []
        if self.unreadable:
            found.append(f"{len(self.unreadable)} of {self.images} images cannot be read")
        if self.shared:
            found.append(f"{len(self.shared)} images are in train and in val, so that scores will be too good")
        if self.conflicting:
            found.append(f"{len(self.conflicting)} images have different labels in different places")
        if self.repeated:
            found.append(f"{len(self.repeated)} images to train on are there more than once")
        empty = [name for name, count in self.counts["train"].items() if not count]
        if empty:
            found.append(f"no images to train on of {', '.join(empty)}: training refuses such a class")
        odd = [name for name in self.counts["train"] if self.several and "," in name]
        if odd:
            found.append(f"labels with commas in them, such as {odd[0]!r}: several labels are separated by ; or |")
        if self.missing:
            found.append(f"no validation images of {', '.join(self.missing)}")
        if self.imbalance >= IMBALANCE:
            found.append(f"the largest class has {self.imbalance:.0f} times as many images to train on as the smallest")
        return found


@dataclass(frozen=True)
class _Seen:
    digest: str
    size: tuple[int, int]
    is_grey: bool
    problem: str


def check(
    data: str | Path,
    *,
    seed: int = 0,
    val_fraction: float = 0.2,
    train_split: str | None = None,
    val_split: str | None = None,
    target_key: str | None = None,
) -> CheckResult:
    """Reads every image of a data set as training would, and says what is wrong.

    Args:
        data: As in `train`.
        seed: As in `train`; says which images are drawn for validation.
        val_fraction: As in `train`.
        train_split: As in `train`.
        val_split: As in `train`.
        target_key: As in `train`.

    Raises:
        ValueError: If the data are not of a form that training takes, or no image can be read.
    """
    chosen = Parts(train_split=train_split, val_split=val_split, target_key=target_key)
    found = find_training_data(data, seed=seed, val_fraction=val_fraction, allow_empty=True, parts=chosen)
    parts = {"train": found.training, "val": found.validation}
    paths = list(dict.fromkeys(path for part in parts.values() for path in part.paths))
    with ThreadPoolExecutor(max_workers=min(available_cores(), 16)) as pool:
        seen = dict(zip(paths, pool.map(_look, paths), strict=True))
    readable = [each for each in seen.values() if not each.problem]
    if not readable:
        raise ValueError(f"none of the {len(paths)} images in {data} can be read: {next(iter(seen.values())).problem}")
    by_pixels = sorted((each.size for each in readable), key=lambda size: size[0] * size[1])
    shared, repeated, conflicting = _repetitions(parts, seen)
    return CheckResult(
        counts={name: part.counts() for name, part in parts.items()},
        images=sum(map(len, parts.values())),
        drawn=found.drawn,
        unreadable={str(path): each.problem for path, each in seen.items() if each.problem},
        shared=shared,
        repeated=repeated,
        conflicting=conflicting,
        ignored=tuple(map(str, left_out_files(data))),
        smallest=by_pixels[0],
        median=(round(median(size[0] for size in by_pixels)), round(median(size[1] for size in by_pixels))),
        largest=by_pixels[-1],
        grey=sum(each.is_grey for each in readable),
        several=found.training.multi_label,
    )


def _look(path: ImagePlace) -> _Seen:
    try:
        header = read_header(path)
        read_image(path, 3)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (ValueError, OSError) as error:
        return _Seen("", (0, 0), False, str(error).removeprefix(f"{path} "))
    width, height = header.size
    return _Seen(digest, (height, width), header.is_grey, "")


Groups = tuple[tuple[str, ...], ...]


def _repetitions(
    parts: Mapping[str, LabelledImages], seen: Mapping[ImagePlace, _Seen]
) -> tuple[Groups, Groups, Groups]:
    places: dict[str, list[tuple[str, ImagePlace, tuple[int, ...]]]] = defaultdict(list)
    for split, part in parts.items():
        for path, labels in zip(part.paths, part.labels, strict=True):
            if not seen[path].problem:
                places[seen[path].digest].append((split, path, labels))
    groups = [group for group in places.values() if len(group) > 1]

    def files(chosen: Iterable[list[tuple[str, ImagePlace, tuple[int, ...]]]]) -> Groups:
        return tuple(tuple(str(path) for _, path, _ in group) for group in chosen)

    return (
        files(group for group in groups if len({split for split, _, _ in group}) > 1),
        files(group for group in groups if Counter(split for split, _, _ in group)["train"] > 1),
        files(group for group in groups if len({labels for _, _, labels in group}) > 1),
    )
