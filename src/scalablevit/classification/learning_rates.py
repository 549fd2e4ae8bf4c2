"""The learning rate of a run that names none."""

from __future__ import annotations

import math
from typing import Literal

BATCH = 64  # images a step, that these belong to
LEARNING_RATES: dict[str, float] = {"muon": 5e-3, "adamw": 1e-3}
FROM_WEIGHTS = 0.2  # of these
LINEAR_RATE, LINEAR_BATCH = 5e-4, 512  # of AdamW, by the paper's authors

LearningRateRule = Literal["root", "linear"]


def default_learning_rate(
    optimizer: str, images: int, *, from_weights: bool, rule: LearningRateRule = "root"
) -> tuple[float, str]:
    """The learning rate, and why.

    Gradients of more images are less noisy, by the square root of their number, and allow steps as much longer (Malladi
    et al., arXiv:2205.10287, for Adam). The paper's authors take steps that are longer by the number itself.

    Args:
        optimizer: One of `LEARNING_RATES`.
        images: In a step, of all its batches.
        from_weights: Whether training starts from trained weights.
        rule: "linear" for AdamW alone.
    """
    rate, reason = LEARNING_RATES[optimizer] * math.sqrt(images / BATCH), f"what suits {optimizer}"
    if rule == "linear":
        rate, reason = LINEAR_RATE * images / LINEAR_BATCH, f"{LINEAR_RATE} for {LINEAR_BATCH} images a step"
        if images != LINEAR_BATCH:
            reason += f", times {images}/{LINEAR_BATCH}"
    elif images != BATCH:
        reason += f" at {BATCH} images a step, times the square root of {images}/{BATCH}"
    if from_weights:
        rate, reason = rate * FROM_WEIGHTS, f"{reason}, and a fifth of it from trained weights"
    return float(f"{rate:.4g}"), reason
