"""Data sets of Hugging Face's library `datasets`: on its hub, or local folders of Parquet files or images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scalablevit.classification.images import LabelledImages
from scalablevit.classification.readers.image_set import ImageSet, number_labels, stored_images
from scalablevit.classification.readers.notation import SetName
from scalablevit.extras import require_extra
from scalablevit.images import ImageStore
from scalablevit.suggestions import nearest_path


class TableStore:
    """Images in a column of a table, as files or paths; the table is mapped into memory, not loaded.

    Args:
        where: How people are told of the images.
        column: The column alone, not decoded.
        key: Its name.
    """

    def __init__(self, where: str, column: Any, key: str) -> None:
        self.where = where
        self.column = column
        self.key = key

    def read(self, index: int) -> bytes:
        """The file in a row; empty if there is none."""
        cell = self.column[index][self.key] or {}
        if cell.get("bytes"):
            return bytes(cell["bytes"])
        return Path(cell["path"]).read_bytes() if cell.get("path") else b""

    def name(self, index: int) -> str:
        """Where, and which row."""
        return f"{self.where}/{index}"


def open_hugging_face_set(name: SetName, target_key: str | None) -> ImageSet:
    """A set of Hugging Face's, with the parts that it has.

    Args:
        name: On the hub, or a folder; one that `save_to_disk` wrote, too. `folder` is where what is fetched, or made of
            other files, is kept; None: where the library keeps it.
        target_key: The column of the labels; None: the only one of classes, or the one called label.

    Raises:
        MissingExtraError: If the library is not installed.
        ValueError: If there is no such set, or it has no column of images, or none of labels.
    """
    require_extra("datasets", "datasets")
    parts = _load(name)
    splits = {split: partial(_read_part, f"{name}/{split}", part, target_key) for split, part in parts.items()}
    return ImageSet(name=str(name), splits=splits)


def load_from(name: SetName, load: Callable[[], Any]) -> Any:
    """What the library loads by a name.

    Raises:
        ValueError: If it cannot; in one line.
    """
    import datasets

    path = Path(name.name)
    if name.name.startswith((".", "/", "~")) and not path.is_dir():
        raise ValueError(f"{name}: there is no folder {path}{nearest_path(path)}: give one, or a set of the hub")
    try:
        return load()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"{name} cannot be loaded ({reason}): give a set of the hub, or a folder that exists"
        ) from error


def columns_of(where: str, features: Any, target_key: str | None) -> tuple[str, str, Any, bool]:
    """The columns of images and of labels, what one label is, and whether an image has a list of them.

    Raises:
        ValueError: If there is no such column; `where` is of what the message speaks.
    """
    return _image_key(where, features), *_target_key(where, features, target_key)


def label_images(store: ImageStore, values: Sequence[Any], kind: Any, where: str, *, is_list: bool) -> LabelledImages:
    """The images of a store with the values of a column as labels; `kind` and `is_list` are what `columns_of` says."""
    names = getattr(kind, "names", None)
    if not is_list:
        labels, classes = number_labels(values, names, where)
        return stored_images(store, labels, classes)
    flat, classes = number_labels([value for row in values for value in row], names, where)
    numbers = iter(flat)
    return stored_images(store, [tuple(next(numbers)[0] for _ in row) for row in values], classes, multi_label=True)


def _load(name: SetName) -> dict[str, Any]:
    import datasets

    path = Path(name.name)

    def load() -> Any:
        if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(name.name, cache_dir=None if name.folder is None else str(name.folder))

    loaded = load_from(name, load)
    return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}


def _read_part(where: str, part: Any, target_key: str | None) -> LabelledImages:
    import datasets

    image_key, key, kind, is_list = columns_of(where, part.features, target_key)
    column = part.select_columns([image_key]).cast_column(image_key, datasets.Image(decode=False))
    values = part.select_columns([key])[:][key]
    return label_images(TableStore(where, column, image_key), values, kind, where, is_list=is_list)


def _image_key(where: str, features: Any) -> str:
    import datasets

    found = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    if not found:
        raise ValueError(f"{where} has no column of images, but {', '.join(features)}: give another set")
    return "image" if "image" in found else str(found[0])


def _target_key(where: str, features: Any, given: str | None) -> tuple[str, Any, bool]:
    """The column of labels, what one label is, and whether an image has a list of them."""
    import datasets

    def inner(key: str) -> Any:
        return getattr(features[key], "feature", features[key])

    if given is not None and given not in features:
        raise ValueError(
            f"{where} has no column {given!r}, but {', '.join(features)}: give one of them as --target-key"
        )
    found = [key for key in features if isinstance(inner(key), datasets.ClassLabel)]
    key = given or ("label" if "label" in features else found[0] if len(found) == 1 else None)
    if key is None:
        raise ValueError(
            f"{where} has {'several columns' if found else 'no column'} of classes; its columns are"
            f" {', '.join(features)}: say which holds the label with --target-key"
        )
    return key, inner(key), inner(key) is not features[key]
