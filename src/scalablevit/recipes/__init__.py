"""Recipes: whole configurations of training runs, as files, each with what it is for and what it has reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from scalablevit.suggestions import nearest_name

_FOLDER = Path(__file__).parent


def recipe_names() -> tuple[str, ...]:
    """All there are."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.yaml")))


def recipe_file(name: str) -> Path:
    """The file of a recipe: YAML, whose first lines say the command, the data, the hardware, the time and the score.

    Raises:
        ValueError: If there is none of that name.
    """
    names = recipe_names()
    if name not in names:
        raise ValueError(f"recipe is {name!r}; it must be one of {', '.join(names)}{nearest_name(name, names)}")
    return _FOLDER / f"{name}.yaml"


def read_recipe(name: str) -> dict[str, Any]:
    """The options of a recipe, by their names.

    Raises:
        ValueError: If there is none of that name.
    """
    options = yaml.safe_load(recipe_file(name).read_text(encoding="utf-8"))
    assert isinstance(options, dict)
    return options
