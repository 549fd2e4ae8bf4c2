"""The layouts of parameters that are known, and the version of our own.

A layout is how an implementation names, shapes and groups the parameters of a network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from scalablevit.weights import paper, vit_pytorch
from scalablevit.weights.rules import ForeignLayout
from scalablevit.weights.state_dicts import listed

LAYOUT_VERSION = 1  # raised whenever a name or shape of our own layout changes
OWN_LAYOUT = "scalablevit"
FIRST_CONV = "stages.0.patch_embedding.conv"  # modules of our own layout, whose shapes hang on images and classes
CLASSIFIER = "head.classifier"
FOREIGN_LAYOUTS: dict[str, ForeignLayout] = {layout.name: layout for layout in (vit_pytorch.LAYOUT, paper.LAYOUT)}
LAYOUTS = (OWN_LAYOUT, *FOREIGN_LAYOUTS)

_OWN_MARKER = r"stages\.\d+\.(patch_embedding|layers|norm)\.|head\.(classifier|hidden)\."


def detect_layout(names: Iterable[str]) -> str:
    """Which of `LAYOUTS` the names of a state dict belong to: the one with most of the names that only it has.

    Raises:
        ValueError: If no name is of any layout.
    """
    names = list(names)
    markers = {OWN_LAYOUT: _OWN_MARKER, **{name: layout.marker for name, layout in FOREIGN_LAYOUTS.items()}}
    votes = {layout: sum(bool(re.match(marker, name)) for name in names) for layout, marker in markers.items()}
    best = max(votes, key=lambda layout: votes[layout])
    if votes[best] == 0:
        raise ValueError(
            f"the names {listed(names)} belong to no known layout ({', '.join(LAYOUTS)}): give the state dict of a"
            " ScalableViT of this package, of vit-pytorch or of the paper's authors"
        )
    return best


def check_layout_version(version: object, source: str) -> None:
    """Checks that this version of the package knows a layout of its own.

    Args:
        version: The layout's version, as a file holds it.
        source: What holds it, for the message.

    Raises:
        ValueError: If the layout is newer than the ones known, or the version is no positive integer.
    """
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"{source} holds the layout version {version!r}; it must be a positive integer: save it anew")
    if version > LAYOUT_VERSION:
        raise ValueError(
            f"{source} holds layout version {version}, and this version of scalablevit knows versions up to"
            f" {LAYOUT_VERSION}: update it with `pip install --upgrade scalablevit`"
        )
