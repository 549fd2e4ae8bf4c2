"""Orders of images that lie in stretches, of which each is fetched as a whole: random, but near by near.

A stretch is a group of rows in a file somewhere else. Were images drawn from all of them, one would be fetched for
every image; so an epoch goes through the stretches in a random order, and mixes the images of those that it is at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MIXED = 8192  # images from whose stretches each one is drawn; timm shuffles as many of a stream


def stretches_at_once(lengths: Sequence[int]) -> int:
    """Over how many stretches images are mixed: as many as hold `MIXED` images together."""
    return max(-(-MIXED * len(lengths) // max(sum(lengths), 1)), 1)


def mixed_order(lengths: Sequence[int], random: np.random.Generator) -> list[int]:
    """All images, each once, those of one stretch among those of `stretches_at_once` others.

    Args:
        lengths: How many images each stretch has, in the order of the images.
        random: What the order depends on.
    """
    turn = np.repeat(random.permutation(len(lengths)), lengths)
    return np.argsort(turn + stretches_at_once(lengths) * random.random(len(turn)), kind="stable").tolist()
