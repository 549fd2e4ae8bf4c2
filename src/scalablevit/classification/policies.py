"""RandAugment by timm, and colour jitter, drawn from a generator of ours.

Axes: c channels, h height, w width. Pixels are whole numbers from 0 to 255, (c, h, w).
"""

from __future__ import annotations

import random as python_random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scalablevit.preprocessing import Preprocessing

_SECTION = r"(m\d+|n\d+|p(0?\.\d+|[01])|mstd(\d+\.?\d*|inf)|mmax\d+|inc[01]|tweights)"


def check_policy(policy: str) -> None:
    """Raises a ValueError unless timm would read the policy as it is meant."""
    if not re.fullmatch(rf"rand(-{_SECTION})*", policy):
        raise ValueError(
            f"rand_augment is {policy!r}; it must be rand and, behind hyphens, m (magnitude, to 10), n (operations for"
            " an image), p (probability of each), mstd (deviation of the magnitude), mmax, inc1 (stronger with the"
            " magnitude), for example rand-m9-mstd0.5-inc1"
        )


class RandAugment:
    """RandAugment (Cubuk et al., arXiv:1909.13719) as timm has it.

    timm draws from Python's and NumPy's global generators; they are seeded for the call from the generator that is
    given, and put back, so that the result depends on that one alone.

    Args:
        policy: In timm's notation, such as ``rand-m9-mstd0.5-inc1``.
        preprocessing: The size and the mean of the images, which bound translations and fill what they uncover.
    """

    def __init__(self, policy: str, preprocessing: Preprocessing) -> None:
        from timm.data.auto_augment import rand_augment_transform

        check_policy(policy)
        fill = tuple(min(255, round(255 * mean)) for mean in preprocessing.mean)
        # As timm's create_transform has them; a grey image is filled with a number, not with a tuple.
        hparams: dict[str, Any] = {
            "translate_const": int(min(preprocessing.size) * 0.45),
            "img_mean": fill if preprocessing.channels > 1 else fill[0],
            "interpolation": Image.Resampling[preprocessing.interpolation.upper()],
        }
        self._transform = rand_augment_transform(policy, hparams)

    def __call__(self, pixels: Tensor, random: np.random.Generator) -> Tensor:
        """Other pixels of the same shape."""
        with global_randomness(random):
            image = self._transform(_to_image(pixels))
        array = np.array(image)
        return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))


def _to_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy())


@contextmanager
def global_randomness(random: np.random.Generator) -> Iterator[None]:
    """Seeds Python's and NumPy's global generators from `random`, and puts them back as they were."""
    python_state, numpy_state = python_random.getstate(), np.random.get_state()
    python_random.seed(int(random.integers(2**63)))
    np.random.seed(int(random.integers(2**32)))
    try:
        yield
    finally:
        python_random.setstate(python_state)
        np.random.set_state(numpy_state)


def jitter(pixels: Tensor, strength: float, random: np.random.Generator) -> Tensor:
    """Changes brightness, contrast and saturation, each by a factor from 1 - strength to 1 + strength, in any order.

    A grey image has no saturation to change.
    """
    from torchvision.transforms.v2 import functional

    changes = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    factors = random.uniform(max(0.0, 1 - strength), 1 + strength, len(changes))
    for index in random.permutation(len(changes)):
        pixels = changes[index](pixels, float(factors[index]))
    return pixels
