"""When a run ends before its last epoch."""

from __future__ import annotations

from collections.abc import Sequence

from scalablevit.classification.run_folder import EpochMetrics, best_row


def is_patience_over(rows: Sequence[EpochMetrics], patience: int) -> bool:
    """Whether so many epochs have passed since the best one. What the rows say is all that it depends on.

    Args:
        rows: Of all epochs so far.
        patience: In epochs; 0: without end.
    """
    return bool(patience and rows) and rows[-1].epoch - best_row(rows).epoch >= patience
