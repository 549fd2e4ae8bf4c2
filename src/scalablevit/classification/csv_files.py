"""Labelled images in a CSV file: a header, then a line per image."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalablevit.classification.images import LabelledImages, check_classes, normal_name
from scalablevit.classification.readers.image_set import SPLIT_NAMES

SEPARATORS = ";|"  # between the labels of one image
FORM = (
    "a CSV file of images has a header with the columns path, label (or labels, for any number separated by ; or |),"
    " and optionally split (train, val or test)"
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line: an image, its labels, and the part of the data that it belongs to; None where the file does not say."""

    path: Path
    labels: tuple[str, ...]
    split: str | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a CSV file says."""

    rows: tuple[Row, ...]
    multi_label: bool
    has_splits: bool

    def images(self, split: str | None, classes: Sequence[str], where: str) -> LabelledImages:
        """The images of one part of the data, or all (None), under these classes.

        Raises:
            ValueError: If there are none, or one has a label that is not among `classes`.
        """
        if split is not None and not self.has_splits:
            raise ValueError(f"{where} has no column split: add it, or leave --split out to use all images")
        rows = [row for row in self.rows if split is None or row.split == split]
        if not rows:
            known = ", ".join(sorted({row.split or "" for row in self.rows}))
            raise ValueError(
                f"{where} holds no images with split {split}, but {known}: give some images that split, or leave the"
                " column split out to have validation images drawn"
            )
        positions = {name: index for index, name in enumerate(classes)}
        for row in rows:
            for label in row.labels:
                if label not in positions:
                    raise ValueError(
                        f"{where}: {row.path} has the label {label!r}, a class that the model does not have; it has"
                        f" {', '.join(classes)}"
                    )
        return LabelledImages(
            paths=tuple(row.path for row in rows),
            labels=tuple(tuple(positions[label] for label in row.labels) for row in rows),
            classes=tuple(classes),
            multi_label=self.multi_label,
        )

    def classes(self, split: str | None) -> tuple[str, ...]:
        """The labels that occur in one part of the data, or in all (None), sorted."""
        return tuple(
            sorted({label for row in self.rows if split is None or row.split == split for label in row.labels})
        )


def read_table(file: Path) -> Table:
    """Reads a CSV file. Paths in it that are not absolute start from its own folder.

    Raises:
        ValueError: If it is not of that form, or says two things of one image.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            header = stream.readline()
            stream.seek(0)
            delimiter = next((sign for sign in ",;\t" if sign in header), ",")
            reader = csv.DictReader(stream, delimiter=delimiter, skipinitialspace=True)
            columns = [name.strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            label_column = _label_column(columns, file)
            rows = [_row(record, label_column, file, reader.line_num) for record in reader]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8 ({error.reason}): save it as CSV in UTF-8") from error
    except (OSError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read as a CSV file ({error}): {FORM}") from error
    if not rows:
        raise ValueError(f"{file} holds a header and no images: {FORM}")
    _check_once(rows, file)
    check_classes(sorted({label for row in rows for label in row.labels}), str(file))
    return Table(rows=tuple(rows), multi_label=label_column == "labels", has_splits="split" in columns)


def write_table(file: Path, parts: Iterable[tuple[str, LabelledImages]]) -> None:
    """Writes images and the parts of the data that they belong to; `read_table` reads it from anywhere.

    Raises:
        ValueError: If the name of a file is not valid UTF-8.
    """
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        parts = list(parts)
        writer.writerow(("path", "labels" if parts[0][1].multi_label else "label", "split"))
        for split, images in parts:
            for path, labels in zip(images.paths, images.labels, strict=True):
                assert isinstance(path, Path)
                row = path.absolute(), SEPARATORS[0].join(images.classes[label] for label in labels), split
                try:
                    writer.writerow(row)
                except UnicodeEncodeError as error:
                    raise ValueError(
                        f"{str(path)!r} is not valid UTF-8, in which {file} is written: rename it"
                    ) from error


def _label_column(columns: Sequence[str], file: Path) -> str:
    twice = next((name for name in ("path", "label", "labels", "split") if columns.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{file} has the column {twice} twice: keep the one that is meant")
    found = [name for name in ("label", "labels") if name in columns]
    if len(found) == 2:
        raise ValueError(f"{file} has a column label and a column labels: keep the one that is meant")
    if "path" not in columns or not found:
        raise ValueError(f"{file} has the columns {', '.join(columns) or '(none)'}: {FORM}")
    return found[0]


def _row(record: dict[str, str | None], label_column: str, file: Path, line: int) -> Row:
    def value(column: str) -> str:
        return (record.get(column) or "").strip()

    if not value("path"):
        raise ValueError(f"{file}, line {line}, has no path: {FORM}")
    text = normal_name(value(label_column))
    labels: tuple[str, ...] = (text,)
    if label_column == "labels":
        for separator in SEPARATORS[1:]:
            text = text.replace(separator, SEPARATORS[0])
        labels = tuple(dict.fromkeys(part.strip() for part in text.split(SEPARATORS[0]) if part.strip()))
    elif not text:
        raise ValueError(f"{file}, line {line}: {value('path')} has no label: give it one, or remove the line")
    split = SPLIT_NAMES.get(value("split").lower())
    if "split" in record and split is None:
        raise ValueError(f"{file}, line {line}: split is {value('split')!r}; it must be one of train, val, test")
    return Row(path=file.parent / value("path"), labels=labels, split=split)


def _check_once(rows: Sequence[Row], file: Path) -> None:
    seen: set[Path] = set()
    for row in rows:
        if row.path in seen:
            raise ValueError(f"{file} names {row.path} twice: keep one of the lines")
        seen.add(row.path)
