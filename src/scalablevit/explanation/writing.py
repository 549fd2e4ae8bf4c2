"""How explanations become files: a picture of one image, or a page of any number."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from scalablevit.classification.image_inputs import find_files
from scalablevit.explanation.explanation import Explanation

KINDS = (".png", ".html")


def default_out(images: Sequence[str]) -> Path:
    """Where explanations go if nobody says: a picture for what means one image, else a page."""
    return Path("explanation.png" if len(find_files(images)) == 1 else "explanation.html")


def check_out(out: Path, images: int, *, overwrite: bool) -> None:
    """Checks that so many images can be explained in a file.

    Raises:
        ValueError: If its name has another ending, its folder does not exist, a picture is to hold several images, or
            the file exists and is not to be overwritten, or the folder may not be written into.
    """
    kind = out.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"out is {out}; its name must end in .png, for a picture of one image, or .html, for a page")
    if kind == ".png" and images != 1:
        raise ValueError(f"out is {out}, but there are {images} images: name a page, {out.with_suffix('.html')}")
    if not out.parent.is_dir():
        raise ValueError(f"out is {out}, but there is no folder {out.parent}: make it")
    if out.is_dir():
        raise ValueError(f"out is {out}, which is a folder: name a file")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists: give another name by --out, or --overwrite (overwrite=True)")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"out is {out}, but you may not write into {out.parent.absolute()}: name another folder")


def write(explanations: Iterable[Explanation], out: Path, *, run: str) -> bool:
    """Writes the file, as a whole or not at all, and for no explanation none; `check_out` comes first.

    Of each explanation the drawn panels alone are kept, so that a page may be of many images.

    Returns:
        Whether there was any.
    """
    coming = iter(explanations)
    first = next(coming, None)
    if first is None:
        return False
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        if out.suffix.lower() == ".png":
            first.picture().save(partial, "PNG", optimize=True)
        else:
            from scalablevit.explanation.page import render

            partial.write_text(render(chain([first], coming), run), encoding="utf-8", errors="replace")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return True
