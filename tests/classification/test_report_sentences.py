"""What is said about each picture follows from the figures."""

from dataclasses import replace

import pytest
import torch

from scalablevit.classification.report import sentences
from scalablevit.classification.report.figures import ClassScores, ConfusedPair, ReliabilityBin
from scalablevit.classification.run_folder import EpochMetrics
from scalablevit.classification.scores import Answers, score_answers


def epochs(scores, losses=None):
    return [
        EpochMetrics(
            epoch=epoch,
            train_loss=1.0,
            val_loss=loss,
            val_score=score,
            learning_rate=0.1,
            seconds=1.0,
            images_per_second=1.0,
        )
        for epoch, (score, loss) in enumerate(zip(scores, losses or [1.0] * len(scores), strict=True), 1)
    ]


@pytest.fixture
def result():
    """Three of four named rightly, three of four of one class."""
    answers = Answers(logits=torch.eye(2)[[0, 0, 1, 1]], targets=torch.tensor([0, 0, 0, 1]), classes=("a", "b"))
    return score_answers(answers)


def test_the_result_stands_beside_chance_and_the_most_frequent_class(result):
    text = sentences.on_everything(result, 3, ("a", "b"))
    assert text.startswith("Of 4 images of 2 classes, the model names 3 rightly: 75.0 %.")
    assert "between 30 and 95 %" in text
    assert text.endswith("always naming the most frequent class would be right for 75.0 %.")


def test_the_most_frequent_confusion_is_named():
    text = sentences.on_confusion([ConfusedPair(actual="cat", named="dog", count=7, images=50)])
    assert text.endswith("The model most often takes “cat” for “dog”: 7 of 50 images.")
    assert sentences.on_confusion([]).endswith("There are none.")


@pytest.mark.parametrize(
    ("sure", "right", "verdict"), [(0.9, 0.7, "surer than"), (0.7, 0.9, "less sure than"), (0.9, 0.88, "about as sure")]
)
def test_calibration_is_judged(result, sure, right, verdict):
    bins = [ReliabilityBin(low=0.0, high=1.0, count=10, probability=sure, right=right)]
    assert verdict in sentences.on_calibration(bins, result)


def test_curves_name_the_best_epoch_and_what_came_after():
    text = sentences.on_curves(epochs([50.0, 70.0, 60.0]), "top-1")
    assert "The best top-1, 70.0 %, came after epoch 2 of 3." in text
    assert "better at the end" not in text
    assert "better at the end" in sentences.on_curves(epochs([50.0, 60.0, 70.0, 80.0]), "top-1")
    assert "better at the end" not in sentences.on_curves(epochs([50.0, 79.9, 79.9, 80.0]), "top-1")
    assert "rises again after epoch 2" in sentences.on_curves(epochs([50.0] * 3, [1.0, 0.5, 0.6]), "top-1")
    assert "rises again after" not in sentences.on_curves(epochs([50.0] * 3, [1.0, 0.5, 0.54]), "top-1")


def test_the_lowest_class_is_named():
    rows = [
        ClassScores(name="owl", images=1, precision=None, recall=40.0),
        ClassScores(name="cat", images=9, precision=90.0, recall=80.0),
    ]
    assert sentences.on_classes(rows, False, 30).endswith("It finds fewest of “owl”: 40.0 % of 1 image.")
    assert "The 1 lowest of 2 classes are drawn." in sentences.on_classes(rows, False, 1)
    perfect = [replace(row, recall=100.0) for row in rows]
    assert "every image of every class" in sentences.on_classes(perfect, False, 30)


def test_mistakes_are_counted():
    assert sentences.on_mistakes(0, 0).startswith("There are no mistakes")
    assert sentences.on_mistakes(5, 5).startswith("All mistakes")
    assert sentences.on_mistakes(24, 1234).startswith("The 24 worst of 1,234 mistakes")
