"""What every reader gives: the parts of a set, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalablevit.classification.images import LabelledImages
from scalablevit.images import ImageStore, StoredImage
from scalablevit.suggestions import nearest_name

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
CLASS_NAME_FILES = ("labels.txt", "classes.txt")


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A set of labelled images.

    Args:
        name: How a user named it.
        splits: Its parts, by their own names.
    """

    name: str
    splits: Mapping[str, Callable[[], LabelledImages]]

    def find(self, split: str) -> str | None:
        """The name of the part that is ``"train"``, ``"val"`` or ``"test"``, or has just that name; None if none is."""
        if split in self.splits:
            return split
        wanted = SPLIT_NAMES.get(split.lower())
        return next((name for name in self.splits if wanted and SPLIT_NAMES.get(name.lower()) == wanted), None)

    def images(self, split: str) -> LabelledImages:
        """The images of a part.

        Raises:
            ValueError: If there is no such part, or it holds no images.
        """
        found = self.find(split)
        if found is None:
            raise ValueError(
                f"{self.name} has no split {split!r}{nearest_name(split, self.splits)}; it has {', '.join(self.splits)}"
            )
        images = self.splits[found]()
        if not len(images):
            raise ValueError(f"the split {found!r} of {self.name} holds no images: name another one")
        return images


def stored_images(
    store: ImageStore, labels: Sequence[tuple[int, ...]], classes: Sequence[str], *, multi_label: bool = False
) -> LabelledImages:
    """The images of a store, in their order, with their labels."""
    return LabelledImages(
        paths=tuple(StoredImage(store, index) for index in range(len(labels))),
        labels=tuple(labels),
        classes=tuple(classes),
        multi_label=multi_label,
    )


def number_labels(
    values: Sequence[int] | Sequence[str], names: Sequence[str] | None, where: str
) -> tuple[list[tuple[int, ...]], tuple[str, ...]]:
    """Labels as positions in a list of classes, and that list.

    Args:
        values: Of each image, a whole number from 0, or the name of a class.
        names: Of the classes, for numbers; None: the numbers themselves.
        where: Of what a message speaks.

    Raises:
        ValueError: If a number has no class.
    """
    if values and isinstance(values[0], str):
        classes = tuple(sorted({str(value) for value in values}))
        positions = {name: index for index, name in enumerate(classes)}
        return [(positions[str(value)],) for value in values], classes
    numbers = [int(value) for value in values]
    classes = tuple(names) if names else tuple(map(str, range(max(numbers, default=-1) + 1)))
    wrong = next((index for index, number in enumerate(numbers) if not 0 <= number < len(classes)), None)
    if wrong is not None:
        raise ValueError(
            f"{where}: image {wrong} has the label {numbers[wrong]}, but labels go from 0 to {len(classes) - 1}: name a"
            " split whose images have labels"
        )
    return [(number,) for number in numbers], classes


def read_class_names(folder: Path) -> tuple[str, ...] | None:
    """The names of the classes that a file in a folder lists, one a line, the first for label 0; None without one."""
    for name in CLASS_NAME_FILES:
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    return None
