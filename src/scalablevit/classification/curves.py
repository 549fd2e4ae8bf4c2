"""The course of a training run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scalablevit.classification.run_folder import EpochMetrics


def save_curves(rows: Sequence[EpochMetrics], path: Path) -> None:
    """Draws losses and top-1 over the epochs.

    Args:
        rows: The metrics of each epoch.
        path: The PNG file; its folder is made if it does not exist.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot nothing needs a display, and nothing is left open
    losses, top1 = figure.subplots(1, 2)
    epochs = [row.epoch for row in rows]
    losses.plot(epochs, [row.train_loss for row in rows], marker=".", label="training (augmented, smoothed labels)")
    losses.plot(epochs, [row.val_loss for row in rows], marker=".", label="validation")
    losses.set(xlabel="epoch", ylabel="cross-entropy")
    losses.legend()
    top1.plot(epochs, [row.val_top1 for row in rows], marker=".")
    top1.set(xlabel="epoch", ylabel="validation top-1, per cent")
    for axes in (losses, top1):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
