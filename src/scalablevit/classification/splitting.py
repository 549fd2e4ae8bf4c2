"""Telling validation images apart where the user has not."""

from __future__ import annotations

from collections import defaultdict

from scalablevit.classification.images import LabelledImages
from scalablevit.classification.randomness import Purpose, generator


def split_images(images: LabelledImages, *, seed: int, fraction: float) -> tuple[LabelledImages, LabelledImages]:
    """Draws validation images, the same fraction of each class, at least one of each.

    An image with several labels counts for the rarest of them, one without any for itself. None is drawn that is the
    last of one of its classes to train on, so that training knows all classes.

    Args:
        images: All images.
        seed: Says which are drawn.
        fraction: How many of a class, above 0 and below 1.

    Returns:
        The rest, to train on, and the drawn images, both in their old order.

    Raises:
        ValueError: If the fraction is not possible, or nothing can be drawn, since the classes have too few images.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction is {fraction!r}; it must lie between 0 and 1, for example 0.2")
    counts = list(images.counts().values())
    left = counts.copy()  # images of each class to train on
    groups: dict[int, list[int]] = defaultdict(list)
    for position, labels in enumerate(images.labels):
        groups[min(labels, key=lambda label: (counts[label], label), default=-1)].append(position)
    random = generator(Purpose.SPLIT, seed)
    drawn: set[int] = set()
    for _, members in sorted(groups.items()):
        if len(members) > 1:
            wanted = min(max(round(fraction * len(members)), 1), len(members) - 1)
            for position in (members[index] for index in random.permutation(len(members)).tolist()):
                if wanted and all(left[label] > 1 for label in images.labels[position]):
                    drawn.add(position)
                    wanted -= 1
                    for label in images.labels[position]:
                        left[label] -= 1
    if not drawn:
        raise ValueError(
            "the classes have too few images for any to be kept for validation: add images, or put validation images"
            " into a folder val/ beside train/"
        )
    return (
        images.select([position for position in range(len(images)) if position not in drawn]),
        images.select(sorted(drawn)),
    )
