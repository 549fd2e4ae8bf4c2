"""What the two switches are set to, for the whole process, and autocast; `selection` has functions that set them."""

from __future__ import annotations

from types import TracebackType
from typing import Literal

import torch

Choice = bool | Literal["auto"]
choices: dict[str, Choice] = {"triton": "auto", "native": "auto"}


class Restoration:
    """What a switch gives back: as a context manager it restores the choice before."""

    def __init__(self, kind: str, before: Choice) -> None:
        self.kind = kind
        self.before = before

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        choices[self.kind] = self.before


def choose(kind: str, choice: Choice) -> Restoration:
    """Sets a switch, from here on.

    Args:
        kind: "triton" or "native".
        choice: True for wherever kernels can run, False for nowhere, "auto" for where they are known to be faster.

    Raises:
        ValueError: If `choice` is none of the three.
    """
    if not isinstance(choice, bool) and choice != "auto":
        raise ValueError(f'choice is {choice!r}; it must be True, False or "auto"')
    before, choices[kind] = choices[kind], choice
    return Restoration(kind, before)


def autocast_dtype() -> torch.dtype | None:
    """The type in which autocast has layers multiply on a CPU; None where it is off."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
