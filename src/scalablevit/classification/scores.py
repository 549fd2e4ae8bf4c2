"""How right a classifier is. All shares are in per cent.

Axes: n images, c classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

CALIBRATION_BINS = 15
THRESHOLD = 0.5  # above it a label of several is taken as given


@dataclass(frozen=True, kw_only=True)
class CommonResult:
    """What is known of an evaluation, however many labels an image has.

    Args:
        data: What was evaluated on.
        images: Number of images.
        images_per_second: Reading, decoding and computing.
        trained_on: How many of the images have the names of images that the run was trained on.
        skipped: Images that could not be read, with the reasons.
        loss: Mean cross-entropy; binary where an image may have several labels.
        precision: For each class that the model named, how many of those images are of it.
        recall: For each class that has images, how many of them the model named rightly.
    """

    data: str = ""
    images: int
    images_per_second: float = 0.0
    trained_on: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    loss: float
    precision: dict[str, float]
    recall: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class EvaluateResult(CommonResult):
    """How right a model is on images that have one label each, beside what `CommonResult` says.

    Args:
        top1: Images whose class has the highest score.
        top5: Images whose class is among the five highest scores (100 if there are no more classes).
        calibration_error: Expected calibration error: how far, on average, the probability of the first class is from
            how often that class is right; over 15 bins of equal width (Naeini et al., AAAI 2015).
        confusion: How many images of each class (row) were named as each class (column).
    """

    top1: float
    top5: float
    calibration_error: float
    confusion: tuple[tuple[int, ...], ...] = field(repr=False)

    @property
    def score(self) -> float:
        """The most important figure."""
        return self.top1

    def headline(self) -> str:
        """The most important figures as a line of text."""
        top5 = f" top-5 {self.top5:.1f} %," if len(self.confusion) > 5 else ""  # else it is 100
        return (
            f"top-1 {self.top1:.1f} %,{top5} loss {self.loss:.4f}, calibration error {self.calibration_error:.1f} %,"
            f" {self.images} images"
        )


@dataclass(frozen=True, kw_only=True)
class MultiLabelResult(CommonResult):
    """How right a model is on images that have any number of labels each, beside what `CommonResult` says.

    Args:
        mean_average_precision: Mean of `average_precision`.
        f1: Mean over the classes of the harmonic mean of precision and recall, at a probability of 0.5.
        f1_micro: The same over all labels together.
        average_precision: For each class that has images: the area under precision over recall.
    """

    mean_average_precision: float
    f1: float
    f1_micro: float
    average_precision: dict[str, float]

    @property
    def score(self) -> float:
        """The most important figure."""
        return self.mean_average_precision

    def headline(self) -> str:
        """The most important figures as a line of text."""
        return (
            f"mAP {self.mean_average_precision:.1f} %, F1 {self.f1:.1f} %, micro F1 {self.f1_micro:.1f} %, loss"
            f" {self.loss:.4f}, {self.images} images"
        )


AnyResult = EvaluateResult | MultiLabelResult


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model says of images, and what is right.

    Args:
        logits: (n, c), float32, on the CPU.
        targets: (n,), positions of classes; or, where an image may have several labels, (n, c), 1 for each that it has.
        classes: Names of the classes.
    """

    logits: Tensor
    targets: Tensor
    classes: tuple[str, ...]

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.targets.ndim == 2

    @property
    def probabilities(self) -> Tensor:
        """(n, c)."""
        return self.logits.sigmoid() if self.multi_label else self.logits.softmax(1)


class Scores:
    """Gathers what a model says, batch by batch."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._logits: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: (b, c).
            targets: (b,) or (b, c), as in `Answers`.
        """
        self._logits.append(logits.detach().float().cpu())
        self._targets.append(targets.cpu())

    def merge(self, others: Sequence[Scores]) -> None:
        """Adds what others have gathered."""
        for other in others:
            self._logits += other._logits
            self._targets += other._targets

    def answers(self) -> Answers:
        """All that was added.

        Raises:
            ValueError: If nothing was.
        """
        if not self._logits:
            raise ValueError("there are no images to compute scores of")
        return Answers(logits=torch.cat(self._logits), targets=torch.cat(self._targets), classes=self.classes)

    def result(self) -> AnyResult:
        """The scores of all that was added.

        Raises:
            ValueError: If nothing was.
        """
        return score_answers(self.answers())


def score_answers(answers: Answers) -> AnyResult:
    """The scores of a model's answers."""
    return _score_several_labels(answers) if answers.multi_label else _score_one_label(answers)


def _score_one_label(answers: Answers) -> EvaluateResult:
    from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

    logits, targets, count = answers.logits, answers.targets, len(answers.classes)
    predicted = logits.argmax(1)
    confusion = multiclass_confusion_matrix(predicted, targets, count)
    in_top5 = (logits.topk(min(5, count), dim=1).indices == targets[:, None]).any(1)
    # Where the logits are not numbers, as early in a run that fails, there is no calibration.
    probabilities = answers.probabilities.nan_to_num(0.0)
    return EvaluateResult(
        top1=_per_cent((predicted == targets).sum(), len(targets)),
        top5=_per_cent(in_top5.sum(), len(targets)),
        loss=float(F.cross_entropy(logits, targets)),
        calibration_error=100 * float(multiclass_calibration_error(probabilities, targets, count, CALIBRATION_BINS)),
        images=len(targets),
        precision=_shares(confusion.diagonal(), confusion.sum(0), answers.classes),
        recall=_shares(confusion.diagonal(), confusion.sum(1), answers.classes),
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def _score_several_labels(answers: Answers) -> MultiLabelResult:
    from torchmetrics.functional.classification import binary_average_precision

    targets, probabilities = answers.targets.long(), answers.probabilities
    given = probabilities > THRESHOLD
    right = (given & (targets == 1)).sum(0)
    average_precision = {
        name: 100 * float(binary_average_precision(probabilities[:, index], targets[:, index]))
        for index, name in enumerate(answers.classes)
        if targets[:, index].any()
    }
    sizes = given.sum(0) + targets.sum(0)  # (c,), what F1 sets twice the right ones in relation to
    f1 = 100 * float((2 * right / sizes)[sizes > 0].mean()) if sizes.any() else 0.0
    f1_micro = 100 * 2 * int(right.sum()) / max(int(sizes.sum()), 1)
    return MultiLabelResult(
        mean_average_precision=sum(average_precision.values()) / max(len(average_precision), 1),
        f1=f1,
        f1_micro=f1_micro,
        loss=float(F.binary_cross_entropy_with_logits(answers.logits, answers.targets.float())),
        images=len(targets),
        average_precision=average_precision,
        precision=_shares(right, given.sum(0), answers.classes),
        recall=_shares(right, targets.sum(0), answers.classes),
    )


def _per_cent(part: Tensor, whole: int) -> float:
    return 100 * int(part) / whole


def _shares(parts: Tensor, wholes: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """For each class with a whole above 0, what the part is of it, in per cent."""
    return {
        name: 100 * part / whole
        for name, part, whole in zip(classes, parts.tolist(), wholes.tolist(), strict=True)
        if whole
    }
