"""`explain`: what a saved network looks at in images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from scalablevit.classification.evaluation import choose_device
from scalablevit.classification.image_inputs import find_files, names_below
from scalablevit.classification.prediction import FailedPrediction
from scalablevit.explanation.evidence import METHODS, Method, find_evidence
from scalablevit.explanation.explanation import Explanation
from scalablevit.explanation.forward_pass import run as run_forward
from scalablevit.explanation.forward_pass import to_images, to_probabilities
from scalablevit.explanation.looks import check_stages, choose_stages, look_from
from scalablevit.explanation.windows import choose_window_stage, find_influence
from scalablevit.explanation.writing import check_out, write
from scalablevit.extras import require_extra
from scalablevit.images import read_image
from scalablevit.preprocessing import Preprocessing
from scalablevit.scalable_vit import ScalableViT
from scalablevit.suggestions import nearest_name
from scalablevit.weights import is_multi_label, load_model, read_config

Points = Sequence[tuple[float, float]] | Literal["all"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network that is asked, and what its images and answers mean.

    Args:
        model: The network. It is left as it was.
        preprocessing: What its images go through.
        labels: Names of its classes, in the order of the logits.
        multi_label: Whether each class has a probability of its own.
    """

    model: ScalableViT
    preprocessing: Preprocessing
    labels: Sequence[str]
    multi_label: bool = False

    @classmethod
    def load(cls, run: str | Path, device: str | None = None) -> Subject:
        """The network of a run folder, or of a folder by `save_model`.

        Raises:
            ValueError: If the folder is not as it must be, the network gives no classes, or there is no such device.
        """
        config = read_config(run)
        model = load_model(run, choose_device(device))
        if model.num_classes == 0 or model.global_pool == "":
            raise ValueError(f"{run} holds a network without a classifier: only answers can be explained")
        return cls(
            model=model,
            preprocessing=Preprocessing.from_pretrained_cfg(config["pretrained_cfg"]),
            labels=config.get("label_names") or [str(index) for index in range(model.num_classes)],
            multi_label=is_multi_label(config),
        )


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about each image.

    Args:
        stages: Whose attention is shown, from 1; None: two that tell most.
        heads: Which of its heads, from 1, each by itself; None: the mean of all.
        label: The class whose evidence is looked for; None: the most probable one.
        points: From where the attention is looked at: (x, y) from (0, 0), the upper left corner of what the network is
            given, to (1, 1); ``"all"``: from everywhere; None: from where the evidence is strongest.
        method: How evidence is found; see `scalablevit.explanation.evidence`.

    Raises:
        ValueError: If a value is not possible.
    """

    stages: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    label: str | None = None
    points: Points | None = None
    method: Method = "integrated-gradients"

    def __post_init__(self) -> None:
        for name, numbers in (("stages", self.stages), ("heads", self.heads)):
            if numbers is not None and (not numbers or min(numbers) < 1):
                raise ValueError(f"{name} is {list(numbers)}; it must hold numbers from 1")
        if self.method not in METHODS:
            hint = nearest_name(self.method, METHODS)
            raise ValueError(f"method is {self.method!r}{hint}; it must be one of {', '.join(METHODS)}")
        if self.points is None or self.points == "all":
            return
        for point in self.points:
            if len(point) != 2 or not all(isinstance(part, (int, float)) and 0 <= part <= 1 for part in point):
                raise ValueError(
                    f"points has {point!r}; a point is x and y, each from 0 to 1: (0.5, 0.5) is the middle of the image"
                )


def explain(
    run: str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    stages: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    label: str | None = None,
    points: Points | None = None,
    method: Method = "integrated-gradients",
    device: str | None = None,
    overwrite: bool = False,
) -> list[Explanation]:
    """What a network looks at in images, in the order of the images.

    Args:
        run: A run folder, or a folder by `save_model`. Without labels there, classes are called by their number.
        images: Image files, folders of images, or patterns such as ``"photos/*.jpg"``.
        out: A picture to make (``.png``, of one image) or a page (``.html``, of any number); None: neither.
        stages: The stages whose attention is looked at, from 1; None: two that tell most.
        heads: Which of their heads, from 1; None: the mean of all.
        label: The class whose evidence is looked for; None: the most probable one of each image.
        points: From where the attention is looked at: (x, y) from (0, 0), the upper left corner of what the network is
            given, to (1, 1); ``"all"``: from everywhere; None: from where the evidence is strongest.
        method: How evidence is found: ``"integrated-gradients"`` or ``"grad-cam"``.
        device: Where to compute, for example ``"cuda"``; None: the machine's accelerator if it has one.
        overwrite: Whether `out` may replace a file.

    Returns:
        An `Explanation` of each image.

    Raises:
        MissingExtraError: If captum or matplotlib is not installed.
        ValueError: If the run is not as it must be, a file is not a readable image, the network has no such label,
            stage or head, or `out` exists.
        FileNotFoundError: If there is no such file.
    """
    question = Question(stages=stages, heads=heads, label=label, points=points, method=method)
    explanations = []
    for each in explain_each(run, images, question, out=out, device=device, overwrite=overwrite):
        if isinstance(each, FailedPrediction):
            raise each.error()
        explanations.append(each)
    if out is not None:
        write(explanations, Path(out), run=str(run))
    return explanations


def explain_each(
    run: str | Path,
    images: str | Path | Sequence[str | Path],
    question: Question | None = None,
    *,
    out: str | Path | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> Iterator[Explanation | FailedPrediction]:
    """The same one by one; an image that cannot be read is one of the results, and not the end. Writes nothing.

    Raises:
        MissingExtraError: If captum or matplotlib is not installed.
        ValueError: If the run is not as it must be, a folder or pattern holds no images, the network has no such label,
            stage or head, or `out` could not be written.
    """
    require_extra("explain", "captum", "matplotlib")
    question = question or Question()
    given = [images] if isinstance(images, (str, Path)) else images
    files = find_files(given)
    names = names_below(files, given)
    if out is not None:
        check_out(Path(out), len(files), overwrite=overwrite)
    subject = Subject.load(run, device)
    check_question(subject, question)
    for path, name in zip(files, names, strict=True):
        try:
            image = read_image(path, subject.preprocessing.channels)
        except (ValueError, OSError) as error:
            yield FailedPrediction(path=path, reason=str(error))
        else:
            yield explain_image(subject, image, question, path=path, name=name)


def check_question(subject: Subject, question: Question) -> None:
    """Raises a ValueError if the network has no such label, stage or head."""
    if question.label is not None and question.label not in subject.labels:
        hint = nearest_name(question.label, subject.labels)
        some = ", ".join(subject.labels[:10]) + (" ..." if len(subject.labels) > 10 else "")
        raise ValueError(f"label is {question.label!r}{hint}; the network knows {some}")
    check_stages(subject.model, question.stages or choose_stages(subject.model, question.heads), question.heads)


def explain_image(
    subject: Subject,
    image: Image.Image,
    question: Question | None = None,
    *,
    path: Path | None = None,
    name: str | None = None,
) -> Explanation:
    """What a network looks at in one image.

    Args:
        subject: The network. It is left as it was.
        image: The image, in any mode.
        question: What is asked.
        path: The image's file, for the picture's heading.
        name: What it is called there; None: by the name of its file.
    """
    from scalablevit.explanation.view import view_of

    question = question or Question()
    check_question(subject, question)
    model = subject.model
    view = view_of(image, subject.preprocessing)
    passed = run_forward(model, to_images(model, subject.preprocessing, image))
    probabilities = to_probabilities(passed.logits, subject.labels, multi_label=subject.multi_label)
    order = sorted(range(len(probabilities)), key=lambda index: -probabilities[index])
    index = order[0] if question.label is None else list(subject.labels).index(question.label)
    evidence = find_evidence(model, passed, index, question.method)
    points = _in_pixels(question.points, view.size)
    if question.points is None and evidence.values.any():
        points = [evidence.peak_pixel]
    stages = question.stages or choose_stages(model, question.heads)
    window_stage = choose_window_stage(model, passed)
    return Explanation(
        path=path,
        name=name,
        view=view,
        labels=tuple(subject.labels[each] for each in order),
        probabilities=tuple(probabilities[each] for each in order),
        label=subject.labels[index],
        multi_label=subject.multi_label,
        evidence=evidence,
        attention=tuple(
            look_from(model, passed, stage, points=points, heads=heads)
            for stage in stages
            for heads in ([None] if question.heads is None else [[head] for head in question.heads])
        ),
        windows=None
        if window_stage is None
        else find_influence(model, passed, window_stage, points[0] if points else (0.0, 0.0)),
    )


def parse_points(texts: Sequence[str]) -> Points:
    """Points as the command takes them: ``x,y`` each, or ``all``.

    Raises:
        ValueError: If one is no such point.
    """
    if list(texts) == ["all"]:
        return "all"
    try:
        return [(float(x), float(y)) for x, y in (text.split(",") for text in texts)]
    except ValueError:
        raise ValueError(f"points is {' '.join(texts)}; give x,y with both from 0 to 1, or all") from None


def _in_pixels(points: Points | None, size: tuple[int, int]) -> list[tuple[float, float]]:
    """Rows and columns, in pixels, of points that are (x, y) from 0 to 1."""
    if points is None or isinstance(points, str):
        return []
    return [(y * size[0] - 0.5, x * size[1] - 0.5) for x, y in points]
