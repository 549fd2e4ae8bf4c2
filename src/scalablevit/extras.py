"""The optional packages, asked for by name where they are missing."""

from __future__ import annotations

from importlib.util import find_spec


class MissingExtraError(ImportError):
    """A package is missing that an optional feature needs; the message says what to install."""


def require_extra(extra: str, *packages: str) -> None:
    """Checks that packages are there.

    Args:
        extra: The extra of this package that brings them.
        *packages: Their names, as in an import.

    Raises:
        MissingExtraError: If one is not.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: install scalablevit[{extra}],"
            f" for example with pip install 'scalablevit[{extra}]'"
        )
