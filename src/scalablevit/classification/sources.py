"""What a user names as data: a folder, a CSV file, a set by its name, or the embedded sample; and what it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scalablevit.classification.class_folders import LAYOUT, class_folders, images_in_class_folders, other_files
from scalablevit.classification.csv_files import read_table
from scalablevit.classification.images import LabelledImages, normal_name
from scalablevit.classification.readers import ImageSet, is_set, open_set
from scalablevit.classification.readers.image_set import SPLIT_NAMES
from scalablevit.classification.splitting import split_images
from scalablevit.suggestions import nearest_path

SAMPLE = "sample"
FORMS = (
    "a folder with train/<class>/ and val/<class>/, a folder of class folders, a CSV file with the columns path, label"
    " and optionally split, a set by its name (torch/NAME:FOLDER, hfds/NAME, hfids/NAME, wds/FOLDER), or 'sample' for"
    " the embedded images"
)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which parts of a set are used, where data are a set that is read by `readers`.

    Args:
        train_split: The part to train on; None: the one called train, or the only one.
        val_split: The part to validate with; None: the one called val, validation, or the like, and where there is
            none, images are drawn from those to train on.
        target_key: What holds the label, where a set has several such columns or fields.
    """

    train_split: str | None = None
    val_split: str | None = None
    target_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Images to train on and to validate with, under the same classes.

    Args:
        training: The images to train on.
        validation: The images to validate with.
        drawn: Whether the two were drawn at random here, and not told apart by the user.
        unused: The names of other parts of the data.
    """

    training: LabelledImages
    validation: LabelledImages
    drawn: bool
    unused: tuple[str, ...] = ()


def locate(data: str | Path) -> Path:
    """The folder or file that `data` means: a path, or ``"sample"`` for the embedded images (``"./sample"`` is a path).

    Raises:
        ValueError: If there is no such folder or CSV file.
    """
    if data == SAMPLE:
        from scalablevit.sample import sample_folder

        return sample_folder()
    path = Path(data)
    if not path.exists():
        raise ValueError(f"{path} does not exist{nearest_path(path)}: give {FORMS}")
    if path.is_file() and path.suffix.lower() != ".csv":
        raise ValueError(f"{path} is a file, but no CSV file: give {FORMS}")
    return path


def left_out_files(data: str | Path) -> list[Path]:
    """The files in class folders that are no images by their endings; none where data are no folder of these."""
    if is_set(data):
        return []
    path = locate(data)
    return other_files(path) if path.is_dir() else []


def find_training_data(
    data: str | Path, *, seed: int, val_fraction: float, allow_empty: bool = False, parts: Parts | None = None
) -> TrainingData:
    """The images to train on and to validate with.

    Args:
        data: See `FORMS`.
        seed: Where the data do not tell validation images apart, they are drawn, and this says which.
        val_fraction: Then, the fraction of each class that is drawn.
        allow_empty: Whether a folder of a class may hold no images.
        parts: Which parts of a set are used; None: as `Parts` says.

    Raises:
        ValueError: If the data are not of one of the forms, or hold fewer than two classes.
    """
    found: LabelledImages | tuple[LabelledImages, LabelledImages]
    unused: tuple[str, ...] = ()
    if is_set(data):
        found, unused = _from_set(data, parts or Parts())
    elif parts not in (None, Parts()):
        raise ValueError(
            f"train_split, val_split and target_key are for sets by name and idx files, which {data} is not: leave them"
            " out"
        )
    else:
        path = locate(data)
        found = _from_table(path) if path.is_file() else _from_folders(path, allow_empty=allow_empty)
    classes = found.classes if isinstance(found, LabelledImages) else found[0].classes
    if not classes:
        raise ValueError(f"{data} gives no label to any image: give some")
    if len(classes) < 2 and not _is_multi_label(found):
        raise ValueError(f"{data} holds one class, {classes[0]!r}: classification needs at least two")
    if isinstance(found, LabelledImages):
        if found.stretches:
            raise ValueError(
                f"{data} has no part to validate with, and none is drawn from images that are streamed: name one of its"
                f" parts with --val-split, or give hfds/{str(data).partition('/')[2]}"
            )
        training, validation = split_images(found, seed=seed, fraction=val_fraction)
        return TrainingData(training=training, validation=validation, drawn=True, unused=unused)
    return TrainingData(training=found[0], validation=found[1], drawn=False, unused=unused)


def find_evaluation_data(
    data: str | Path,
    classes: Sequence[str],
    *,
    multi_label: bool = False,
    split: str | None = None,
    target_key: str | None = None,
) -> LabelledImages:
    """The images to evaluate a model with these classes on.

    Args:
        data: See `FORMS`.
        classes: The classes of the model, in the order of its logits.
        multi_label: Whether the model gives any number of labels to an image.
        split: ``"train"``, ``"val"`` or ``"test"``, or the name of a part of a set; None: val where the data are told
            apart, of a set without it test, else all images.
        target_key: What holds the label, where a set has several such columns or fields.

    Raises:
        ValueError: If the data are not of one of the forms, or hold a class that is not among `classes`.
    """
    if is_set(data):
        return _part_of_set(open_set(data, target_key=target_key), classes, multi_label=multi_label, split=split)
    path = locate(data)
    if path.is_file():
        table = read_table(path)
        if table.multi_label != multi_label:
            wanted, column = ("any number of labels", "labels") if multi_label else ("one label", "label")
            raise ValueError(f"the model gives {wanted} to an image: {path} must have a column {column}")
        return table.images(split or ("val" if table.has_splits else None), classes, str(path))
    if multi_label:
        raise ValueError(f"the model gives any number of labels to an image, which {path} cannot say: give a CSV file")
    folder = split_folders(path).get(split or "val")
    if folder is not None:
        return images_in_class_folders(folder, classes)
    if split is not None:
        raise ValueError(f"{path} holds no folder {split}/: leave --split out to use all of it")
    return images_in_class_folders(path, classes)


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders that are parts of the data, by ``"train"``, ``"val"`` and ``"test"``; other usual names do too."""
    found: dict[str, Path] = {}
    for entry in class_folders(folder):
        split = SPLIT_NAMES.get(entry.name.lower())
        if split is not None and found.setdefault(split, entry) != entry:
            raise ValueError(f"{folder} holds {found[split].name}/ and {entry.name}/, which mean the same: keep one")
    return found


def _from_folders(folder: Path, *, allow_empty: bool) -> LabelledImages | tuple[LabelledImages, LabelledImages]:
    parts = split_folders(folder)
    if "train" not in parts and "val" not in parts:
        _check_no_part_is_a_class(folder, parts)
        return images_in_class_folders(folder, allow_empty=allow_empty)
    for split in ("train", "val"):
        if split not in parts:
            raise ValueError(
                f"{folder} holds no folder {split}/: {LAYOUT}, below train/ and below val/; or name one folder of"
                " class folders, to have validation images drawn"
            )
    training = images_in_class_folders(parts["train"], allow_empty=allow_empty)
    return training, images_in_class_folders(parts["val"], training.classes)


def _check_no_part_is_a_class(folder: Path, parts: dict[str, Path]) -> None:
    """Raises a ValueError if images to test with, beside the folders of their classes, would be one class more."""
    classes = {normal_name(entry.name) for entry in class_folders(folder)}
    for part in parts.values():
        if any(normal_name(entry.name) in classes for entry in class_folders(part)):
            raise ValueError(
                f"{folder} holds {part.name}/, with images of the same classes, beside the folders of these: move these"
                f" into {folder.name}/train/, or {part.name}/ elsewhere"
            )


def _from_set(
    data: str | Path, parts: Parts
) -> tuple[LabelledImages | tuple[LabelledImages, LabelledImages], tuple[str, ...]]:
    """The images, and the names of the parts that are not used."""
    image_set = open_set(data, target_key=parts.target_key)
    names = list(image_set.splits)
    train_split = parts.train_split or (names[0] if len(names) == 1 else "train")
    val_split = parts.val_split or image_set.find("val")
    training = image_set.images(train_split)
    used = {image_set.find(split) for split in (train_split, val_split) if split is not None}
    unused = tuple(name for name in names if name not in used)
    if val_split is None:
        return training, unused
    if image_set.find(val_split) == image_set.find(train_split):
        raise ValueError(
            f"{val_split!r} of {image_set.name} is to be trained on and validated with: name another split"
        )
    validation = image_set.images(val_split).under(training.classes, f"{image_set.name}/{val_split}")
    return (training, validation), unused


def _part_of_set(
    image_set: ImageSet, classes: Sequence[str], *, multi_label: bool, split: str | None
) -> LabelledImages:
    names = list(image_set.splits)
    chosen = split or image_set.find("val") or image_set.find("test") or (names[0] if len(names) == 1 else "val")
    images = image_set.images(chosen)
    if images.multi_label != multi_label:
        wanted = "any number of labels" if multi_label else "one label"
        raise ValueError(f"the model gives {wanted} to an image, which is not how {image_set.name} is labelled")
    return images.under(classes, f"{image_set.name}/{chosen}")


def _from_table(file: Path) -> LabelledImages | tuple[LabelledImages, LabelledImages]:
    table = read_table(file)
    if not table.has_splits:
        return table.images(None, table.classes(None), str(file))
    classes = table.classes("train")
    training = table.images("train", classes, str(file))
    return training, table.images("val", classes, str(file))


def _is_multi_label(found: LabelledImages | tuple[LabelledImages, LabelledImages]) -> bool:
    return found.multi_label if isinstance(found, LabelledImages) else found[0].multi_label
