"""Randomness as a function of position.

What is drawn depends on the seed and on where it is used (epoch, step, sample), never on what was drawn before. So it
does not depend on the number of workers, and a run that is continued draws what it would have drawn.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What random numbers are for. Different purposes have independent streams at the same position."""

    ORDER = 1  # of the images, at (epoch,)
    AUGMENTATION = 2  # of one image, at (epoch, index)
    STEP = 3  # drop-path, dropout, and the mixing of images, at (number of the batch in the run,)
    SPLIT = 4  # which images are kept for validation


def generator(purpose: Purpose, seed: int, *position: int) -> np.random.Generator:
    """A generator that starts from the purpose, the seed and the position alone."""
    return np.random.default_rng((purpose, seed, *position))


def torch_seed(purpose: Purpose, seed: int, *position: int) -> int:
    """The same, as a seed for `torch.manual_seed`."""
    return int(generator(purpose, seed, *position).integers(2**63))
