"""What a saved model sees in images: the results, and the function that gives them for files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from scalablevit.classification.image_inputs import ImageInput


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of one image.

    Args:
        path: The image's file; None if it was given in another form.
        labels: Names of the classes, the most probable first.
        probabilities: Theirs, from 0 to 1. They sum to 1 over all classes, unless an image may have several labels:
            then each is one of its own.
        indices: Their positions among the model's logits.
        source: What was given as the image: a reference, no copy.
    """

    path: Path | None
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    indices: tuple[int, ...]
    source: Any = field(default=None, repr=False, compare=False)

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """Its probability, from 0 to 1."""
        return self.probabilities[0]

    @property
    def index(self) -> int:
        """Its position among the model's logits."""
        return self.indices[0]

    def to_json(self) -> str:
        """The result as one line of JSON, without the image."""
        line = json.dumps(
            {
                "path": None if self.path is None else str(self.path),
                "labels": self.labels,
                "probabilities": self.probabilities,
                "indices": self.indices,
            },
            ensure_ascii=False,
        )
        # A name of a file that is no UTF-8 holds signs that cannot be written as such.
        return line.encode("utf-8", "backslashreplace").decode()

    def picture(self) -> Image.Image:
        """The image with its classes as bars beside it.

        Raises:
            ValueError: If the image is not known, or can no longer be read.
        """
        from scalablevit.classification.prediction_picture import draw

        return draw(self)

    def show(self) -> Image.Image:
        """Opens the `picture` in the machine's viewer, or in the notebook, and returns it."""
        picture = self.picture()
        picture.show(title=self.label)
        return picture


@dataclass(frozen=True, kw_only=True)
class FailedPrediction:
    """An image that could not be read, and the reason; `path` is None if it was no file."""

    path: Path | None
    reason: str

    def error(self) -> Exception:
        """What is raised where there is no going on: FileNotFoundError if there is no such file, else ValueError."""
        is_missing = self.path is not None and not os.path.exists(self.path)  # noqa: PTH110  # that of Path may raise
        return FileNotFoundError(self.reason) if is_missing else ValueError(self.reason)


def predict(
    run: str | Path,
    images: ImageInput | Sequence[ImageInput],
    top: int = 5,
    *,
    batch_size: int = 32,
    device: str | None = None,
    workers: int | None = None,
) -> list[Prediction]:
    """The most probable classes of images, in the order of the images.

    `Predictor` does the same and keeps the model for the next images.

    Args:
        run: A run folder, a folder by `save_model`, the name of a trained model, or an export. Without labels there,
            classes are called by their number.
        images: Image files, folders of images, or patterns such as ``"photos/*.jpg"``; or images in memory, see
            `Predictor`.
        top: How many classes to give for each image; no more than there are.
        batch_size: Images at once.
        device: Where to compute, for example ``"cuda"``; None: the machine's accelerator if it has one.
        workers: Threads that read images beside the network; None: as `Predictor` has them.

    Raises:
        ValueError: If the run is not as it must be, or something is not a readable image.
        FileNotFoundError: If there is no such file.
    """
    from scalablevit.classification.predictor import Predictor

    return Predictor(run, device=device, top=top, batch_size=batch_size, workers=workers).predict_all(images)


def predict_each(
    run: str | Path,
    images: ImageInput | Sequence[ImageInput],
    top: int = 5,
    *,
    batch_size: int = 32,
    device: str | None = None,
    workers: int | None = None,
) -> Iterator[Prediction | FailedPrediction]:
    """The same one by one, as they come; an image that cannot be read is one of the results, and not the end.

    Raises:
        ValueError: If the run is not as it must be, or a folder or pattern holds no images.
    """
    from scalablevit.classification.predictor import Predictor

    return Predictor(run, device=device, top=top, batch_size=batch_size, workers=workers).stream(images)
