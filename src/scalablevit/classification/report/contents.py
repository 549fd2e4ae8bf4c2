"""What the report holds: the pictures, and the parts of the page, in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from PIL import Image

from scalablevit.classification.report import charts, page, sentences
from scalablevit.classification.report.figures import (
    ClassScores,
    ConfusedPair,
    Prediction,
    ReliabilityBin,
    class_scores,
    confused_pairs,
    count_right,
    predictions,
    reliability_bins,
    spread,
    worst_mistakes,
)
from scalablevit.classification.report.page import Chart, Section
from scalablevit.classification.report.sheets import draw_sheet
from scalablevit.classification.report.theme import DARK, LIGHT, Theme
from scalablevit.classification.report.thumbnails import read_thumbnail
from scalablevit.classification.run_folder import EpochMetrics
from scalablevit.classification.scores import Answers, AnyResult, EvaluateResult
from scalablevit.images import ImagePlace

SHEET = 24  # images on a sheet
PAIRS = 10


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report, computed as it is asked for; see `write_report` for the fields."""

    title: str
    result: AnyResult
    answers: Answers
    paths: Sequence[ImagePlace]
    metrics: Sequence[EpochMetrics]
    facts: Mapping[str, str]
    skipped: Mapping[str, str]
    is_last_kept: bool = False
    pictures: dict[str, bytes] = field(default_factory=dict, init=False)  # by file name; filled by `html`

    def html(self) -> str:
        """The page. Draws the pictures."""
        parts = [
            self._training() if self.metrics else None,
            self._confusion(self.result)
            if isinstance(self.result, EvaluateResult) and len(self.answers.classes) > 1
            else None,
            self._mistakes(),
            self._predictions(),
            self._classes(),
            self._calibration(),
            self._skipped() if self.skipped else None,
            self._facts() if self.facts else None,
        ]
        sections = [part for part in parts if part]
        lead = sentences.on_everything(self.result, self._right, self.answers.classes)
        return page.render_page(self.title, lead, self.result.data, self._tiles(), sections)

    @cached_property
    def _right(self) -> int:
        return count_right(self.answers)

    @cached_property
    def _worst(self) -> list[Prediction]:
        return worst_mistakes(self.answers, SHEET)

    @cached_property
    def _sample(self) -> list[Prediction]:
        return predictions(self.answers, spread(len(self.paths), SHEET))

    @cached_property
    def _images(self) -> dict[int, Image.Image | None]:
        """The images on the sheets; each is read once."""
        shown = {prediction.index for prediction in (*self._worst, *self._sample)}
        return {index: read_thumbnail(self.paths[index]) for index in sorted(shown)}

    @property
    def _score_name(self) -> str:
        return "mAP" if self.answers.multi_label else "top-1"

    def _tiles(self) -> dict[str, str]:
        result, per_cent = self.result, sentences.per_cent
        if isinstance(result, EvaluateResult):
            tiles = {"top-1: named rightly": per_cent(result.top1)}
            if len(self.answers.classes) > 5:
                tiles["top-5: right class among the first five"] = per_cent(result.top5)
            tiles["calibration error"] = per_cent(result.calibration_error)
        else:
            tiles = {
                "mAP: mean average precision": per_cent(result.mean_average_precision),
                "F1, mean over classes": per_cent(result.f1),
                "F1, over all labels": per_cent(result.f1_micro),
            }
        tiles |= {"loss": f"{result.loss:.3f}", "images": f"{result.images:,}"}
        if result.images_per_second:
            tiles["images a second"] = f"{result.images_per_second:,.0f}"
        return tiles

    def _training(self) -> Section:
        text = sentences.on_curves(self.metrics, self._score_name, is_last_kept=self.is_last_kept)
        best = max(row.val_score for row in self.metrics)
        alternative = (
            f"Lines over {sentences.count(len(self.metrics), 'epoch')}: validation {self._score_name} from"
            f" {self.metrics[0].val_score:.1f} to {self.metrics[-1].val_score:.1f} %, at best {best:.1f} %; and losses."
        )
        drawn = self._draw("curves.png", alternative, lambda theme: self._curves(theme))
        return Section(anchor="training", heading="Training", html=page.paragraph(text) + drawn)

    def _curves(self, theme: Theme) -> bytes:
        return charts.draw_curves(self.metrics, self._score_name, theme)

    def _confusion(self, result: EvaluateResult) -> Section:
        classes = self.answers.classes
        pairs: list[ConfusedPair] = confused_pairs(result, classes, PAIRS)
        html = page.paragraph(sentences.on_confusion(pairs))
        html += self._draw(
            "confusion.png",
            f"Confusion matrix of {sentences.count(len(classes), 'class', 'classes')}: {self._right:,} of"
            f" {sentences.count(result.images, 'image')} on its diagonal.",
            lambda theme: charts.draw_confusion(result.confusion, classes, theme),
        )
        if pairs:
            html += f"<h3>Most often confused</h3>\n{page.pairs_table(pairs)}"
        return Section(anchor="confusion", heading="What it confuses", html=html)

    def _mistakes(self) -> Section:
        html = page.paragraph(sentences.on_mistakes(len(self._worst), len(self.paths) - self._right))
        return Section(
            anchor="mistakes", heading="Worst mistakes", html=html + self._sheet("mistakes.png", self._worst)
        )

    def _predictions(self) -> Section:
        html = page.paragraph(sentences.on_predictions(len(self._sample), len(self.paths)))
        html += self._sheet("predictions.png", self._sample)
        return Section(anchor="predictions", heading="Sample predictions", html=html)

    def _classes(self) -> Section:
        scores: list[ClassScores] = class_scores(self.result, self.answers)
        name = "average precision" if self.answers.multi_label else "recall"
        html = page.paragraph(sentences.on_classes(scores, self.answers.multi_label, charts.BARS))
        lowest = ", ".join(f"{row.name} {sentences.per_cent(row.score)}" for row in scores[:3] if row.score is not None)
        html += self._draw(
            "classes.png",
            f"Bars of the {name} of each class, the lowest first: {lowest}.",
            lambda theme: charts.draw_classes(scores, name, theme),
        )
        html += page.classes_table(scores, multi_label=self.answers.multi_label)
        return Section(anchor="classes", heading="Class by class", html=html)

    def _calibration(self) -> Section:
        bins: list[ReliabilityBin] = reliability_bins(self.answers)
        html = page.paragraph(sentences.on_calibration(bins, self.result))
        html += self._draw(
            "calibration.png",
            "Bars of how often the model is right, by how sure it is: "
            + ", ".join(f"{100 * part.probability:.0f} % sure, {100 * part.right:.0f} % right" for part in bins)
            + ".",
            lambda theme: charts.draw_calibration(bins, theme, multi_label=self.answers.multi_label),
        )
        return Section(anchor="calibration", heading="Can its confidence be believed?", html=html)

    def _skipped(self) -> Section:
        text = f"{sentences.count(len(self.skipped), 'image')} could not be read and count in none of the figures."
        html = page.paragraph(text) + page.skipped_table(self.skipped)
        return Section(anchor="skipped", heading="Skipped files", html=html)

    def _facts(self) -> Section:
        return Section(anchor="facts", heading="How this was made", html=page.facts_table(self.facts))

    def _draw(self, name: str, alternative: str, draw: Callable[[Theme], bytes]) -> str:
        """Draws a chart, keeps its file, and returns it as HTML."""
        light, dark = draw(LIGHT), draw(DARK)
        self.pictures[name] = light
        return page.chart(Chart(light=light, dark=dark, alternative=alternative))

    def _sheet(self, name: str, shown: Sequence[Prediction]) -> str:
        """Draws a sheet of images, keeps its file, and returns the same as HTML, which flows to any width."""
        if not shown:
            return ""
        self.pictures[name] = draw_sheet(shown, self._images, LIGHT)
        return page.cards(shown, self._images, self.paths)
