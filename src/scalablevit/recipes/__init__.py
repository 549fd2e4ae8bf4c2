"""Recipes: whole configurations of training runs, as files, each with what it is for and what it has reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

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


class ShorterWarmup(NamedTuple):
    """A recipe's warm-up for a run that is shorter than the recipe's own, and what is said of it."""

    epochs: float
    remark: str


def shorter_warmup(name: str, epochs: int) -> ShorterWarmup | None:
    """A recipe's warm-up in proportion to a run of so many epochs; None if it takes no more than half of the run."""
    recipe = read_recipe(name)
    warmup, usual = recipe["warmup_epochs"], recipe["epochs"]
    if 2 * warmup <= epochs:
        return None
    shorter = float(f"{warmup * epochs / usual:.3g}")
    return ShorterWarmup(
        shorter, f"warmup_epochs {shorter:g}: the recipe's {warmup:g} of {usual} epochs, in proportion to {epochs}"
    )
