"""Mixup and CutMix: training on pairs of images at once.

Axes: b batch, c channels, h height, w width.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def mix(
    images: Tensor,
    targets: Tensor,
    *,
    mixup: float,
    cutmix: float,
    random: np.random.Generator,
    probability: float = 1.0,
    cutmix_share: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Mixes each image of a batch with another of the same batch, and their targets in the same proportion.

    Mixup (Zhang et al., arXiv:1710.09412) adds the two, CutMix (Yun et al., arXiv:1905.04899) puts a rectangle of one
    into the other. Where both are wanted, one is drawn for the batch.

    Args:
        images: (b, c, h, w).
        targets: (b, classes), probabilities.
        mixup: Parameter of the Beta distribution of Mixup's weight; 0 for never.
        cutmix: Parameter of the Beta distribution of CutMix's area; 0 for never.
        random: Where the randomness comes from.
        probability: That the batch is mixed at all.
        cutmix_share: Where both are wanted, the probability that it is CutMix.
    """
    if not (mixup or cutmix) or (probability < 1 and random.random() >= probability):
        return images, targets
    order = torch.from_numpy(random.permutation(len(images))).to(images.device)
    if cutmix and not (mixup and random.random() < 1 - cutmix_share):
        top, bottom, left, right = _rectangle(images.shape[2], images.shape[3], random.beta(cutmix, cutmix), random)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[order, :, top:bottom, left:right]
        kept = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    else:
        kept = random.beta(mixup, mixup)
        mixed = kept * images + (1 - kept) * images[order]
    return mixed, kept * targets + (1 - kept) * targets[order]


def _rectangle(height: int, width: int, area: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a rectangle of the image's shape at a random place, cut at the image's border."""
    half_height, half_width = math.sqrt(area) * height / 2, math.sqrt(area) * width / 2
    y, x = random.uniform(0, height), random.uniform(0, width)
    top, bottom = max(round(y - half_height), 0), min(round(y + half_height), height)
    left, right = max(round(x - half_width), 0), min(round(x + half_width), width)
    return top, bottom, left, right
