"""How right a classifier is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """How right a model is on a set of labelled images.

    Args:
        top1: Per cent of images whose class has the highest score.
        top5: Per cent of images whose class is among the five highest scores (100 if there are no more classes).
        loss: Mean cross-entropy.
        images: Number of images.
        recall: For each class that has images, the per cent of them whose class has the highest score.
    """

    top1: float
    top5: float
    loss: float
    images: int
    recall: dict[str, float]


class Scores:
    """Gathers scores over batches. Whole numbers are summed, and equal inputs count equally whatever the batch size."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        self.in_top5 = 0
        self.loss = 0.0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: (b, classes).
            labels: (b,), the right classes.
        """
        logits, labels = logits.detach().float().cpu(), labels.cpu()
        pairs = labels * len(self.classes) + logits.argmax(1)
        self.confusion += torch.bincount(pairs, minlength=self.confusion.numel()).view_as(self.confusion)
        best = logits.topk(min(5, len(self.classes)), dim=1).indices
        self.in_top5 += int((best == labels[:, None]).sum())
        self.loss += float(F.cross_entropy(logits, labels, reduction="sum"))

    def result(self) -> EvaluateResult:
        """The scores of all that was added.

        Raises:
            ValueError: If nothing was.
        """
        images = int(self.confusion.sum())
        if not images:
            raise ValueError("there are no images to compute scores of")
        right, of_class = self.confusion.diagonal(), self.confusion.sum(1)
        return EvaluateResult(
            top1=100 * int(right.sum()) / images,
            top5=100 * self.in_top5 / images,
            loss=self.loss / images,
            images=images,
            recall={
                name: 100 * int(right[index]) / int(of_class[index])
                for index, name in enumerate(self.classes)
                if of_class[index]
            },
        )
