"""Classes of unequal size, by hand arithmetic."""

from collections import Counter

import numpy as np
import pytest
import torch

from scalablevit.classification.balance import BalancedSampler, class_weights, describe_balance
from scalablevit.classification.images import LabelledImages
from scalablevit.classification.run_folder import RunFolder
from scalablevit.classification.training import train
from tests.conftest import TINY, write_images


def images(*counts, multi_label=False):
    labels = tuple((index,) for index, count in enumerate(counts) for _ in range(count))
    names = tuple("abcdef"[: len(counts)])
    return LabelledImages(paths=("x",) * len(labels), labels=labels, classes=names, multi_label=multi_label)


def test_weights_make_classes_count_alike():
    weights = class_weights(images(6, 2, 1))
    torch.testing.assert_close(weights, torch.tensor([9 / 18, 9 / 6, 9 / 3]))
    assert float((weights * torch.tensor([6, 2, 1])).sum()) == pytest.approx(9)
    torch.testing.assert_close(class_weights(images(6, 0, 2)), torch.tensor([8 / 12, 1.0, 8 / 4]))


def test_of_several_labels_those_that_are_there_weigh_as_much_as_those_that_are_not():
    torch.testing.assert_close(class_weights(images(6, 2, 0, multi_label=True)), torch.tensor([2 / 6, 6 / 2, 1.0]))


def test_a_label_of_all_images_is_learned_as_one_of_none_is():
    """Its factor by the rule is 0, and nothing would move its logit."""
    torch.testing.assert_close(class_weights(images(6, 0, multi_label=True)), torch.tensor([1.0, 1.0]))


def test_samples_show_each_class_as_often():
    sampler = BalancedSampler(images(900, 90, 10), seed=3)
    labels = images(900, 90, 10).targets()
    drawn = torch.bincount(labels[torch.tensor(sampler.order(0))])
    assert (abs(drawn - 1000 / 3) < 5 * np.sqrt(1000 * 2 / 9)).all()
    assert sampler.order(0) == BalancedSampler(images(900, 90, 10), seed=3).order(0)
    assert sampler.order(0) != sampler.order(1)
    assert len(sampler) == len(sampler.order(1)) == 1000


def test_what_comes_again_in_an_epoch_is_told_apart_also_where_a_run_goes_on_within_it():
    sampler = BalancedSampler(images(50, 2), seed=0)
    sampler.set_epoch(4)
    positions = list(sampler)
    assert len(set(positions)) == 52
    assert [position[1] for position in positions] == sampler.order(4)
    for index, count in Counter(sampler.order(4)).items():
        repeats = [position[2:] for position in positions if position[1] == index]
        assert repeats == [(), *((repeat,) for repeat in range(1, count))]
    other = BalancedSampler(images(50, 2), seed=0)
    other.start_at(4, 30)
    assert list(other) == positions[30:]


def test_what_is_told():
    assert describe_balance(images(9, 3), "none") == describe_balance(images(4, 4), "weights") == []
    (line,) = describe_balance(images(9, 1), "none")
    assert line.startswith("9 images of a, 1 of b: if the rare ones matter as much, try --balance weights")
    assert "weighted" in describe_balance(images(9, 8), "weights")[0]
    with pytest.raises(ValueError, match=r"images have several labels, .* give --balance weights"):
        BalancedSampler(images(1, 2, multi_label=True), seed=0)


@pytest.mark.parametrize("balance", ["weights", pytest.param("sampling", marks=pytest.mark.slow)])
def test_trains(balance, tmp_path):
    write_images(tmp_path / "data" / "train", 8, seed=0)
    write_images(tmp_path / "data" / "val", 2, seed=0)
    for index in range(1, 8):
        (tmp_path / "data" / "train" / "dark" / f"{index:03}.png").unlink()
    losses = {}
    for kind in ("none", balance):
        result = train(tmp_path / "data", tmp_path / kind, **{**TINY, "epochs": 1}, balance=kind)
        losses[kind] = RunFolder(result.run).read_metrics()[0].train_loss
    assert losses["none"] != losses[balance]
