"""The figures that the report shows, computed from a model's answers. Nothing here draws or writes.

Axes: n images, c classes. Shares are in per cent, probabilities from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scalablevit.classification.scores import (
    CALIBRATION_BINS,
    THRESHOLD,
    Answers,
    AnyResult,
    EvaluateResult,
    MultiLabelResult,
)


@dataclass(frozen=True)
class Label:
    """A class, and how probable the model holds it for an image."""

    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of one image.

    Args:
        index: Position of the image.
        given: The labels that the model gives it, the most probable first.
        actual: The labels that it has.
        wrongness: 0 if the model is right; else how sure it is of its worst mistake, up to 1: the probability of a
            label that is wrong, or 1 less that of a label that it misses.
        multi_label: Whether an image may have several labels.
    """

    index: int
    given: tuple[Label, ...]
    actual: tuple[Label, ...]
    wrongness: float
    multi_label: bool

    @property
    def right(self) -> bool:
        """Whether the model gives all labels that the image has, and no other."""
        return {label.name for label in self.given} == {label.name for label in self.actual}

    @property
    def missed(self) -> tuple[Label, ...]:
        """The labels that the image has and the model does not give it."""
        given = {label.name for label in self.given}
        return tuple(label for label in self.actual if label.name not in given)

    def has(self, name: str) -> bool:
        """Whether the image has that label."""
        return any(label.name == name for label in self.actual)


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """What comes of the answers whose probability lies between two bounds.

    Args:
        low: Lower bound of the probability.
        high: Upper bound.
        count: How many answers.
        probability: Their mean probability.
        right: How many of them are right, from 0 to 1.
    """

    low: float
    high: float
    count: int
    probability: float
    right: float


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """A class that the model takes for another.

    Args:
        actual: What the images are.
        named: What the model says.
        count: How many times.
        images: How many images of `actual` there are.
    """

    actual: str
    named: str
    count: int
    images: int


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """How right the model is on one class. None: there is nothing to compute it from.

    Args:
        name: The class.
        images: How many images have it.
        precision: How many of the images that the model gives it have it.
        recall: To how many of the images that have it the model gives it.
        average_precision: The area under precision over recall, where images have several labels.
    """

    name: str
    images: int
    precision: float | None
    recall: float | None
    average_precision: float | None = None

    @property
    def score(self) -> float | None:
        """What classes are ranked by: average precision where images have several labels, else recall."""
        return self.recall if self.average_precision is None else self.average_precision


def predictions(answers: Answers, indices: Sequence[int]) -> list[Prediction]:
    """What the model says of the images at `indices`."""
    probabilities, given, actual = _probabilities(answers), _given(answers), _actual(answers)
    wrongness = _wrongness(answers)
    return [
        Prediction(
            index=index,
            given=_labels(answers.classes, probabilities[index], given[index]),
            actual=_labels(answers.classes, probabilities[index], actual[index]),
            wrongness=float(wrongness[index]),
            multi_label=answers.multi_label,
        )
        for index in indices
    ]


def worst_mistakes(answers: Answers, limit: int) -> list[Prediction]:
    """The images that the model is most surely wrong about, the worst first."""
    wrong = (_given(answers) != _actual(answers)).any(1)
    order = torch.where(wrong, _wrongness(answers), -1.0).argsort(descending=True, stable=True)
    return predictions(answers, order[: min(limit, int(wrong.sum()))].tolist())


def count_right(answers: Answers) -> int:
    """On how many images everything that the model says is right."""
    return int((_given(answers) == _actual(answers)).all(1).sum())


def spread(total: int, limit: int) -> list[int]:
    """At most `limit` positions out of `total`, evenly spaced, so that nobody picks what looks good."""
    count = min(total, limit)
    return [position * total // count for position in range(count)]


def reliability_bins(answers: Answers, bins: int = CALIBRATION_BINS) -> list[ReliabilityBin]:
    """Answers by how probable the model holds them, in bins of equal width; empty ones are left out.

    An answer is the first class of an image; where images have several labels, each label of each image.
    """
    probabilities, actual = _probabilities(answers), _actual(answers)
    if answers.multi_label:
        probability, right = probabilities.flatten(), actual.flatten()
    else:
        probability, named = probabilities.max(1)
        right = actual.gather(1, named[:, None]).flatten()
    position = (probability * bins).long().clamp(max=bins - 1)
    return [
        ReliabilityBin(
            low=index / bins,
            high=(index + 1) / bins,
            count=int(inside.sum()),
            probability=float(probability[inside].double().mean()),
            right=float(right[inside].double().mean()),
        )
        for index in range(bins)
        if (inside := position == index).any()
    ]


def confused_pairs(result: EvaluateResult, classes: Sequence[str], limit: int) -> list[ConfusedPair]:
    """The classes that are most often taken for another, the most frequent first."""
    confusion = torch.tensor(result.confusion)
    images = confusion.sum(1)
    mistakes = confusion.clone().fill_diagonal_(0).flatten()
    order = mistakes.argsort(descending=True, stable=True)[:limit].tolist()
    return [
        ConfusedPair(
            actual=classes[position // len(classes)],
            named=classes[position % len(classes)],
            count=int(mistakes[position]),
            images=int(images[position // len(classes)]),
        )
        for position in order
        if mistakes[position]
    ]


def class_scores(result: AnyResult, answers: Answers) -> list[ClassScores]:
    """The scores of each class, the lowest first; classes without images come last."""
    images = _actual(answers).sum(0).tolist()
    average_precision = result.average_precision if isinstance(result, MultiLabelResult) else {}
    scores = [
        ClassScores(
            name=name,
            images=count,
            precision=result.precision.get(name),
            recall=result.recall.get(name),
            average_precision=average_precision.get(name),
        )
        for name, count in zip(answers.classes, images, strict=True)
    ]
    return sorted(scores, key=lambda row: (row.score is None, row.score or 0.0))


def likely_range(right: int, total: int) -> tuple[float, float]:
    """Between which shares the true one lies with 95 % confidence (Wilson's interval), given `right` of `total`."""
    z, share = 1.96, right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return 100 * max(centre - half, 0.0), 100 * min(centre + half, 1.0)


def _probabilities(answers: Answers) -> Tensor:
    """(n, c). Logits that are not numbers, as of a run that failed, count as no probability."""
    return answers.probabilities.nan_to_num(0.0)


def _given(answers: Answers) -> Tensor:
    """(n, c), whether the model gives the image the label."""
    if answers.multi_label:
        return _probabilities(answers) > THRESHOLD
    return _one_hot(answers.logits.argmax(1), answers)


def _actual(answers: Answers) -> Tensor:
    """(n, c), whether the image has the label."""
    return answers.targets > THRESHOLD if answers.multi_label else _one_hot(answers.targets, answers)


def _one_hot(positions: Tensor, answers: Answers) -> Tensor:
    return torch.nn.functional.one_hot(positions, len(answers.classes)).bool()


def _wrongness(answers: Answers) -> Tensor:
    """(n,), see `Prediction`."""
    probabilities, given, actual = _probabilities(answers), _given(answers), _actual(answers)
    sure = torch.where(given, probabilities, 1 - probabilities)
    # Of images with one label, missing it and giving another is one mistake.
    wrong = given != actual if answers.multi_label else given & ~actual
    return (sure * wrong).amax(1)


def _labels(classes: Sequence[str], probabilities: Tensor, chosen: Tensor) -> tuple[Label, ...]:
    """The chosen classes of an image, the most probable first."""
    positions = chosen.nonzero().flatten().tolist()
    positions.sort(key=lambda position: -float(probabilities[position]))
    return tuple(Label(classes[position], float(probabilities[position])) for position in positions)
