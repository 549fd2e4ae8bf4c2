"""When patience is over, row by row."""

from scalablevit.classification.early_stopping import is_patience_over
from scalablevit.classification.run_folder import EpochMetrics


def rows(*scores):
    return [
        EpochMetrics(
            epoch=epoch,
            train_loss=1.0,
            val_loss=1.0,
            val_score=score,
            learning_rate=0.1,
            seconds=1.0,
            images_per_second=1.0,
        )
        for epoch, score in enumerate(scores, 1)
    ]


def test_counts_the_epochs_since_the_best():
    assert not is_patience_over(rows(50.0, 60.0, 55.0, 60.0), 3)  # two since the second
    assert is_patience_over(rows(50.0, 60.0, 55.0, 60.0, 59.0), 3)
    assert not is_patience_over(rows(50.0, 60.0, 55.0, 61.0, 59.0), 3)


def test_without_patience_or_epochs_it_is_never_over():
    assert not is_patience_over(rows(50.0, 40.0, 30.0), 0)
    assert not is_patience_over([], 1)
