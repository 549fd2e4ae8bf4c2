"""What a person who never read a paper is told about each picture. Plain text, computed from the figures."""

from __future__ import annotations

from collections.abc import Sequence

from scalablevit.classification.report.figures import ClassScores, ConfusedPair, ReliabilityBin, likely_range
from scalablevit.classification.run_folder import EpochMetrics, best_row
from scalablevit.classification.scores import AnyResult, EvaluateResult

GAIN = 0.5  # points in the last quarter of the epochs, above which more epochs seem worth it
RISE = 1.1  # times the lowest validation loss
SURE_ENOUGH = 3.0  # points between how sure a model is and how often it is right that nobody need care about


def on_everything(result: AnyResult, right: int, classes: Sequence[str]) -> str:
    """The result in two sentences."""
    of = f"{count(result.images, 'image')} of {count(len(classes), 'class', 'classes')}"
    low, high = likely_range(right, result.images)
    if not isinstance(result, EvaluateResult):
        share = per_cent(100 * right / result.images)
        return f"Of {of}, the model gives {right:,} exactly the labels that they have: {share}."
    text = (
        f"Of {of}, the model names {right:,} rightly: {per_cent(result.top1)}. Chance alone puts the share on other"
        f" images like these between {low:.0f} and {high:.0f} % (95 % confidence)"
    )
    always = per_cent(100 * max(map(sum, result.confusion)) / result.images)
    return f"{text}; always naming the most frequent class would be right for {always}."


def on_curves(rows: Sequence[EpochMetrics], score_name: str, *, is_last_kept: bool = False) -> str:
    """Which epoch was the best, and what the last ones say of more; `is_last_kept` says which one was saved."""
    best = best_row(rows)
    lowest = min(rows, key=lambda row: row.val_loss)
    kept = (
        "The model is that of the last epoch, so that these images chose nothing."
        if is_last_kept
        else "It was chosen on these same images, so that on others the model may be a little worse."
    )
    text = (
        "Above: how good the model is on images it does not learn from, after each epoch (a pass over all training"
        f" images). The best {score_name}, {per_cent(best.val_score)}, came after epoch {best.epoch} of"
        f" {rows[-1].epoch}. {kept}"
    )
    if rows[-1].val_loss > RISE * lowest.val_loss:
        return (
            f"{text} Below: the validation loss rises again after epoch {lowest.epoch}, a sign that the model learns"
            " its training images by heart; more images or stronger augmentation may help."
        )
    text += " Below: the loss, which training makes small; a validation line that rises again would be a bad sign."
    if best is rows[-1] and best.val_score - rows[len(rows) * 3 // 4 - 1].val_score > GAIN and len(rows) > 2:
        return f"{text} The model was still getting better at the end: more epochs may help."
    return text


def on_confusion(pairs: Sequence[ConfusedPair]) -> str:
    """How to read the matrix, and its largest mistake."""
    how = (
        "Each row is what the images are, each column what the model says. Right answers lie on the blue diagonal;"
        " everything orange is a mistake, the stronger the larger its share of the row."
    )
    if not pairs:
        return f"{how} There are none."
    top = pairs[0]
    return (
        f"{how} The model most often takes {quote(top.actual)} for {quote(top.named)}:"
        f" {top.count:,} of {count(top.images, 'image')}."
    )


def on_mistakes(shown: int, wrong: int) -> str:
    """What the worst mistakes are good for."""
    if not wrong:
        return "There are no mistakes: the model is right about every image."
    which = "All mistakes" if shown == wrong else f"The {shown} worst of {wrong:,} mistakes"
    return (
        f"{which}: where the model is wrong and most sure of it. Look for images whose label is wrong in the data, for"
        " images that show several things, and for what the model may have looked at instead."
    )


def on_predictions(shown: int, total: int) -> str:
    """How the sample was drawn."""
    if shown == total:
        return "All images, with what the model says and how sure it is; ✗ marks what is wrong."
    return (
        f"{shown} of {total:,} images, evenly spaced through the data and not picked by hand, with what the model says"
        " and how sure it is; ✗ marks what is wrong."
    )


def on_classes(scores: Sequence[ClassScores], multi_label: bool, bars: int) -> str:
    """What the bars are, and which class is worst."""
    scored = [row for row in scores if row.score is not None]
    many = f" The {bars} lowest of {len(scored)} classes are drawn." if len(scored) > bars else ""
    worst = scored[0]
    if multi_label:
        return (
            "Average precision of a class is 100 % if all images that have the label get a higher probability for it"
            f" than all others. The lowest is that of {quote(worst.name)}, {per_cent(worst.score)}"
            f" ({count(worst.images, 'image')}).{many}"
        )
    how = (
        "Recall: of the images of a class, how many the model finds. Precision: of the images that it gives the class,"
        " how many are of it."
    )
    if worst.score == 100:
        return f"{how} It finds every image of every class.{many}"
    of = count(worst.images, "image")
    return f"{how} It finds fewest of {quote(worst.name)}: {per_cent(worst.recall)} of {of}.{many}"


def on_calibration(bins: Sequence[ReliabilityBin], result: AnyResult) -> str:
    """Whether the model's probabilities can be believed."""
    total = sum(part.count for part in bins)
    sure = 100 * sum(part.probability * part.count for part in bins) / total
    right = 100 * sum(part.right * part.count for part in bins) / total
    how = "If the bars end at the dashed line, the model's probabilities can be taken at their word."
    if isinstance(result, EvaluateResult):
        found = f"It is {per_cent(sure)} sure on average and right for {per_cent(right)}"
    else:
        found = f"It holds a label {per_cent(sure)} probable on average, and {per_cent(right)} are there"
    if abs(sure - right) <= SURE_ENOUGH:
        return f"{how} {found}: about as sure as it should be."
    verdict = "surer than it should be (bars below the line)" if sure > right else "less sure than it could be"
    return f"{how} {found}: {verdict}."


def count(number: int, one: str, many: str = "") -> str:
    """A number of things."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def per_cent(value: float | None) -> str:
    """A share; a dash if there is none."""
    return "\N{EN DASH}" if value is None else f"{value:.1f} %"


def quote(name: str) -> str:
    """A class's name within a sentence."""
    return f"“{name}”"
