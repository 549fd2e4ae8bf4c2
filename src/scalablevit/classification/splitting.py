"""Telling validation images apart where the user has not."""

from __future__ import annotations

from collections import defaultdict

from scalablevit.classification.images import LabelledImages
from scalablevit.classification.randomness import Purpose, generator


def split_images(images: LabelledImages, *, seed: int, fraction: float) -> tuple[LabelledImages, LabelledImages]:
    """Draws validation images, the same fraction of each class, at least one of each.

    An image with several labels counts for the rarest of them, one without any for itself.

    Of a class with a single image none is drawn.

    Args:
        images: All images.
        seed: Says which are drawn.
        fraction: How many of a class, above 0 and below 1.

    Returns:
        The rest, to train on, and the drawn images, both in their old order.

    Raises:
        ValueError: If the fraction is not possible, or nothing can be drawn, since each class has a single image.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction is {fraction!r}; it must lie between 0 and 1, for example 0.2")
    counts = list(images.counts().values())
    groups: dict[int, list[int]] = defaultdict(list)
    for position, labels in enumerate(images.labels):
        groups[min(labels, key=lambda label: (counts[label], label), default=-1)].append(position)
    random = generator(Purpose.SPLIT, seed)
    drawn: set[int] = set()
    for _, members in sorted(groups.items()):
        if len(members) > 1:
            count = min(max(round(fraction * len(members)), 1), len(members) - 1)
            drawn.update(members[index] for index in random.permutation(len(members))[:count].tolist())
    if not drawn:
        raise ValueError(
            "each class has a single image, so that none can be kept for validation: add images, or put validation"
            " images into a folder val/ beside train/"
        )
    return (
        images.select([position for position in range(len(images)) if position not in drawn]),
        images.select(sorted(drawn)),
    )
