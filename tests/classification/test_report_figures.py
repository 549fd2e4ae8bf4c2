"""The report's figures, by hand arithmetic."""

import math
from dataclasses import replace

import pytest
import torch

from scalablevit.classification.report.figures import (
    class_scores,
    confused_pairs,
    count_right,
    likely_range,
    predictions,
    reliability_bins,
    spread,
    worst_mistakes,
)
from scalablevit.classification.scores import Answers, score_answers

CLASSES = ("cat", "dog", "owl")


def one_label(probabilities, targets, classes=CLASSES):
    return Answers(logits=torch.tensor(probabilities).log(), targets=torch.tensor(targets), classes=classes)


@pytest.fixture
def answers():
    """Of five images the second, the fourth and the fifth are named wrongly."""
    return one_label(
        [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.05, 0.9, 0.05], [0.2, 0.7, 0.1]], [0, 1, 2, 0, 0]
    )


@pytest.fixture
def several_labels():
    """The first image lacks a label, the second has one too many, the third is right, the fourth has none."""
    probabilities = torch.tensor([[0.9, 0.1, 0.2], [0.6, 0.8, 0.3], [0.7, 0.4, 0.2], [0.3, 0.2, 0.1]])
    targets = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    return Answers(logits=probabilities.logit(), targets=targets, classes=CLASSES)


def test_the_worst_mistake_is_the_surest(answers):
    worst = worst_mistakes(answers, 10)
    assert [prediction.index for prediction in worst] == [3, 4, 1]
    assert [prediction.wrongness for prediction in worst] == pytest.approx([0.9, 0.7, 0.6])
    assert [(label.name, round(label.probability, 3)) for label in worst[0].given] == [("dog", 0.9)]
    assert [(label.name, round(label.probability, 3)) for label in worst[0].missed] == [("cat", 0.05)]
    assert [prediction.index for prediction in worst_mistakes(answers, 2)] == [3, 4]


def test_a_missed_label_is_as_bad_as_its_probability_is_low(several_labels):
    worst = worst_mistakes(several_labels, 10)
    assert [(prediction.index, round(prediction.wrongness, 3)) for prediction in worst] == [(0, 0.9), (1, 0.6)]
    assert [label.name for label in worst[0].missed] == ["dog"]
    assert [label.name for label in worst[1].given] == ["dog", "cat"]  # the most probable first


def test_right_is_every_label_and_no_other(answers, several_labels):
    assert count_right(answers) == 2
    assert count_right(several_labels) == 2
    assert [prediction.right for prediction in predictions(several_labels, range(4))] == [False, False, True, True]


def test_answers_that_are_no_numbers_are_mistakes_of_which_nobody_is_sure():
    answers = Answers(logits=torch.full((2, 2), math.nan), targets=torch.tensor([0, 1]), classes=("a", "b"))
    assert [prediction.wrongness for prediction in worst_mistakes(answers, 5)] == [0.0]
    assert reliability_bins(answers)[0].probability == 0.0


def test_reliability_by_hand():
    # Sure by 0.55, 0.7 and 0.95: two in the third of four bins, of which one is right, and one in the last.
    answers = one_label([[0.55, 0.45], [0.3, 0.7], [0.95, 0.05]], [0, 0, 0], ("a", "b"))
    third, last = reliability_bins(answers, bins=4)
    assert (third.low, third.high, third.count, third.right) == (0.5, 0.75, 2, 0.5)
    assert third.probability == pytest.approx(0.625)
    assert (last.count, last.right) == (1, 1.0)


def test_reliability_of_several_labels_counts_each(several_labels):
    first, last = reliability_bins(several_labels, bins=2)
    assert (first.count, last.count) == (8, 4)
    assert first.right == 1 / 8  # the dog that was missed
    assert last.right == 3 / 4
    assert last.probability == pytest.approx((0.9 + 0.6 + 0.8 + 0.7) / 4)


def test_bins_give_the_calibration_error():
    torch.manual_seed(0)
    logits = 2 * torch.randn(500, 7)
    targets = logits.softmax(1).multinomial(1).flatten()  # as often right as sure, so that signs differ between bins
    answers = Answers(logits=logits, targets=targets, classes=tuple("abcdefg"))
    error = sum(part.count * abs(part.probability - part.right) for part in reliability_bins(answers)) / 500
    assert 100 * error == pytest.approx(score_answers(answers).calibration_error, abs=1e-3)


def test_confused_pairs_by_hand(answers):
    confusion = ((50, 3, 0), (7, 40, 3), (0, 1, 9))
    result = replace(score_answers(answers), confusion=confusion)
    pairs = confused_pairs(result, CLASSES, 3)
    assert [(pair.actual, pair.named, pair.count, pair.images) for pair in pairs] == [
        ("dog", "cat", 7, 50),
        ("cat", "dog", 3, 53),
        ("dog", "owl", 3, 50),
    ]
    assert len(confused_pairs(result, CLASSES, 10)) == 4  # and none that never happened


def test_classes_come_lowest_first_and_those_without_images_last(answers):
    rows = class_scores(score_answers(answers), answers)
    assert [(row.name, row.images, row.recall) for row in rows] == [
        ("dog", 1, 0.0),
        ("cat", 3, pytest.approx(100 / 3)),
        ("owl", 1, 100.0),
    ]
    assert rows[1].precision == 50.0
    without_owls = replace(answers, targets=torch.tensor([0, 1, 1, 0, 0]))
    assert class_scores(score_answers(without_owls), without_owls)[-1].recall is None


def test_several_labels_are_ranked_by_average_precision(several_labels):
    rows = class_scores(score_answers(several_labels), several_labels)
    assert [(row.name, row.images) for row in rows] == [("dog", 2), ("cat", 2), ("owl", 0)]
    assert rows[0].score == pytest.approx(75.0)  # right at the first place and at the fourth: (1 + 2 / 4) / 2
    assert rows[1].score == pytest.approx(100.0)


def test_the_sample_is_evenly_spaced():
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 24) == [0, 1, 2]


def test_likely_range_by_hand():
    # Wilson's interval for 8 of 10, z = 1.96: centre 0.99208 / 1.38416, half width 0.5 / 1.38416 * ...
    low, high = likely_range(8, 10)
    assert (low, high) == (pytest.approx(49.02, abs=0.01), pytest.approx(94.33, abs=0.01))
    assert likely_range(5, 5)[1] == 100.0
    assert likely_range(0, 5)[0] == 0.0
