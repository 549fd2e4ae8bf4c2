"""How a report reaches its folder: whole, and without touching what others left there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from scalablevit.classification.report.contents import Report
from scalablevit.classification.report.theme import MARK
from scalablevit.classification.run_folder import EpochMetrics
from scalablevit.classification.scores import Answers, AnyResult
from scalablevit.images import ImagePlace

PAGE = "index.html"
PICTURES = ("curves.png", "confusion.png", "calibration.png", "predictions.png", "mistakes.png", "classes.png")
_HEAD = 1024  # bytes of a file within which the mark stands


def write_report(
    folder: Path,
    *,
    title: str,
    result: AnyResult,
    answers: Answers,
    paths: Sequence[ImagePlace],
    metrics: Sequence[EpochMetrics] = (),
    facts: Mapping[str, str] = {},
    skipped: Mapping[str, str] = {},
    is_last_kept: bool = False,
) -> Path:
    """Writes a page about a classifier, ``index.html``, and its pictures as PNG files.

    An earlier report in the folder stays until the new one is complete; other files there are left alone.

    Args:
        folder: Where; made if it does not exist.
        title: The page's heading.
        result: The scores of `answers`.
        answers: What the model says of n images, and what is right.
        paths: The n image files, in the same order. Those that have gone since are shown as an empty frame.
        metrics: Of each epoch; empty if there was no training.
        facts: What was run, as lines of a name and a value: model, parameters, image size, seed, versions.
        skipped: Why images could not be read, by path; those that `result` names are added.
        is_last_kept: Whether the model is that of the last epoch, not of the best.

    Returns:
        The page.

    Raises:
        ValueError: If there are no images, `paths` are not as many as the answers, or the folder holds a file of the
            same name as one of the report's that no report wrote.
        OSError: If the folder cannot be written to.
    """
    if not len(answers.targets) == len(paths) > 0:
        raise ValueError(
            f"there are {len(paths)} paths and {len(answers.targets)} answers:"
            " give the path of each image, at least one"
        )
    check_report_folder(folder)
    report = Report(
        title=title,
        result=result,
        answers=answers,
        paths=paths,
        metrics=metrics,
        facts=facts,
        skipped={**result.skipped, **skipped},
        is_last_kept=is_last_kept,
    )
    # Names of files and folders may hold bytes that are no text in any language.
    html = report.html().encode("utf-8", "replace")
    _replace_files(folder, {**report.pictures, PAGE: html})
    return folder / PAGE


def check_report_folder(folder: Path) -> None:
    """Raises a ValueError if writing a report there would replace a file that no report wrote."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder for the report")
    for name in (*PICTURES, PAGE):
        if (folder / name).exists() and not _is_ours(folder / name):
            raise ValueError(f"{folder / name} was not written by a report: move it away, or give another folder")


def _replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Puts the files in place one after the other, each whole, the last one last, and removes what the old had more."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".report-", dir=folder) as temporary:
        for name, content in files.items():
            (Path(temporary) / name).write_bytes(content)
        for name in files:
            (Path(temporary) / name).replace(folder / name)
    for name in PICTURES:
        if name not in files and (folder / name).exists():
            (folder / name).unlink()


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode("ascii") in file.read(_HEAD)
