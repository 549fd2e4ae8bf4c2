"""Scores by hand arithmetic."""

import math

import pytest
import torch

from scalablevit.classification.scores import Scores


def logits_for(predictions, classes):
    return torch.nn.functional.one_hot(torch.tensor(predictions), classes).float()


def test_top1_and_recall_of_a_known_confusion():
    scores = Scores(["cat", "dog", "owl", "fox"])
    labels = [0, 0, 0, 0, 1, 1, 2]
    predictions = [0, 0, 0, 1, 1, 1, 2]
    scores.update(logits_for(predictions, 4), torch.tensor(labels))
    result = scores.result()
    assert result.top1 == pytest.approx(100 * 6 / 7)
    assert result.top5 == 100.0
    assert result.recall == {"cat": 75.0, "dog": 100.0, "owl": 100.0}  # there is no fox to recall
    assert result.images == 7
    assert result.precision == {"cat": 100.0, "dog": pytest.approx(200 / 3), "owl": 100.0}  # no fox was named
    assert result.confusion == ((3, 1, 0, 0), (0, 2, 0, 0), (0, 0, 1, 0), (0, 0, 0, 0))


def test_top5_counts_the_five_highest():
    scores = Scores([str(index) for index in range(8)])
    logits = torch.arange(8.0).repeat(4, 1)  # highest are 7, 6, 5, 4, 3
    scores.update(logits, torch.tensor([7, 3, 2, 0]))
    assert scores.result().top1 == 25.0
    assert scores.result().top5 == 50.0


def test_loss_is_the_mean_cross_entropy():
    scores = Scores(["a", "b"])
    scores.update(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    scores.update(torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([1]))
    assert scores.result().loss == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_batches_do_not_matter():
    logits, labels = torch.randn(50, 6), torch.randint(0, 6, (50,))
    whole, parts = Scores(list("abcdef")), Scores(list("abcdef"))
    whole.update(logits, labels)
    for start in range(0, 50, 7):
        parts.update(logits[start : start + 7], labels[start : start + 7])
    assert parts.result().recall == whole.result().recall
    assert parts.result().top5 == whole.result().top5
    assert parts.result().loss == pytest.approx(whole.result().loss)


def test_no_images_have_no_score():
    with pytest.raises(ValueError, match="no images"):
        Scores(["a", "b"]).result()


def test_calibration_error_by_hand():
    # Four answers of probability 0.9, of which one is wrong: 0.9 - 0.75. Two of 0.6, both right: 1 - 0.6.
    probabilities = torch.tensor([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2)
    scores = Scores(["a", "b"])
    scores.update(probabilities.log(), torch.tensor([0, 0, 0, 1, 0, 0]))
    assert scores.result().calibration_error == pytest.approx(100 * (4 / 6 * 0.15 + 2 / 6 * 0.4), rel=1e-4)


def test_several_labels_by_hand():
    scores = Scores(["sun", "sea", "snow"])
    logits = torch.tensor([[2.0, 1.0, -9.0], [1.0, -1.0, -9.0], [-1.0, 3.0, -9.0], [-2.0, 2.0, -9.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    scores.update(logits, targets)
    result = scores.result()
    assert result.images == 4
    # sun, by rank: right, wrong, right, wrong: (1/1 + 2/3) / 2. The two of the sea come first. No image has snow.
    assert result.average_precision == {"sun": pytest.approx(100 * 5 / 6), "sea": pytest.approx(100.0)}
    assert result.mean_average_precision == pytest.approx((100 * 5 / 6 + 100) / 2)
    assert result.precision == {"sun": 50.0, "sea": pytest.approx(200 / 3)}
    assert result.recall == {"sun": 50.0, "sea": 100.0}
    assert result.f1_micro == pytest.approx(100 * 2 * 3 / (5 + 4))  # 3 right of 5 given and 4 there
    by_hand = torch.nn.functional.softplus(torch.where(targets > 0, -logits, logits)).mean()
    assert result.loss == pytest.approx(by_hand.item())
