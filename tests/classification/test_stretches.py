"""Orders of images that lie in stretches."""

import numpy as np
import pytest

from scalablevit.classification import stretches
from scalablevit.classification.data import EpochSampler
from scalablevit.classification.images import LabelledImages


def lengths(count=200, most=90):
    return np.random.default_rng(count).integers(0, most, count).tolist()


def numbers(lengths):
    """Of each image the stretch that it lies in."""
    return np.repeat(np.arange(len(lengths)), lengths)


@pytest.mark.parametrize("mixed", [1, 300, 8192])
def test_each_image_comes_once_and_few_stretches_are_needed_at_a_time(monkeypatch, mixed):
    monkeypatch.setattr(stretches, "MIXED", mixed)
    order = np.array(stretches.mixed_order(lengths(), np.random.default_rng(1)))
    assert sorted(order.tolist()) == list(range(sum(lengths())))
    needed = numbers(lengths())[order]
    first = {int(number): int(np.argmax(needed == number)) for number in set(needed.tolist())}
    last = {number: len(needed) - 1 - int(np.argmax(needed[::-1] == number)) for number in first}
    in_use = max(sum(first[n] <= place <= last[n] for n in first) for place in range(0, len(needed), 37))
    assert in_use <= stretches.stretches_at_once(lengths()) + 2


def test_images_of_a_stretch_lie_among_those_of_others(monkeypatch):
    monkeypatch.setattr(stretches, "MIXED", 1000)
    needed = numbers(lengths())[stretches.mixed_order(lengths(), np.random.default_rng(2))]
    assert np.mean(needed[1:] == needed[:-1]) < 0.1  # 23 stretches at a time


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return EpochSampler(sum(lengths()), seed=seed, stretches=lengths()).order(epoch)

    assert order(1, 4) == order(1, 4)
    assert len({tuple(order(*place)) for place in ((1, 4), (1, 5), (2, 4))}) == 3


def test_few_stretches_are_looked_at():
    def images(stretches=()):
        return LabelledImages(paths=tuple(range(100)), labels=((0,),) * 100, classes=("a",), stretches=stretches)

    assert images().to_look_at(10) == tuple(range(0, 100, 10))
    assert len(images().to_look_at(1000)) == 100
    assert images((10,) * 10).to_look_at(8) == (0, 1, 30, 31, 60, 61, 90, 91)
    assert images((100,)).to_look_at(3) == (0, 1, 2)
    assert images((0, 60, 0, 40)).to_look_at(4) == (0, 1, 60, 61)
    assert len(images((1,) * 100).to_look_at(50)) == 50
    assert images().select([1, 2]).paths == (1, 2)
    with pytest.raises(AssertionError):
        images((100,)).select([1, 2])
