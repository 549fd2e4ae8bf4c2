"""Randomness depends on the position, and on nothing else."""

import pytest

from scalablevit.classification.randomness import Purpose, generator, torch_seed


def draw(*arguments):
    return generator(*arguments).integers(2**62)


def test_the_same_position_gives_the_same():
    assert draw(Purpose.AUGMENTATION, 5, 2, 7) == draw(Purpose.AUGMENTATION, 5, 2, 7)
    assert torch_seed(Purpose.STEP, 5, 2) == torch_seed(Purpose.STEP, 5, 2)


@pytest.mark.parametrize(
    "other",
    [
        (Purpose.ORDER, 5, 2, 0),
        (Purpose.AUGMENTATION, 6, 2, 0),
        (Purpose.AUGMENTATION, 5, 3, 0),
        (Purpose.AUGMENTATION, 5, 2, 1),
        (Purpose.ORDER, 5, 2),
    ],
)
def test_another_position_gives_something_else(other):
    assert draw(*other) != draw(Purpose.AUGMENTATION, 5, 2, 0)
