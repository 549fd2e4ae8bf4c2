"""Hints at what a user may have meant by a name that is not there."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def nearest_name(name: str, names: Iterable[str]) -> str:
    """`` (did you mean ...?)`` with the most similar of the names; empty if none is similar."""
    near = get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def nearest_path(path: str | Path) -> str:
    """The same for a path that does not exist, among what is beside it."""
    path = Path(path)
    try:
        found = nearest_name(path.name, (entry.name for entry in path.parent.iterdir()))
    except OSError:
        return ""
    return found.replace("mean ", f"mean {path.parent}/", 1) if path.parent != Path() else found
