"""What a saved model sees in images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scalablevit.classification.class_folders import images_below
from scalablevit.classification.evaluation import choose_device
from scalablevit.configuration import check_count
from scalablevit.preprocessing import Preprocessing
from scalablevit.weights import is_multi_label, load_model, read_config


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of one image.

    Args:
        path: The image.
        labels: Names of the classes, the most probable first.
        probabilities: Theirs, from 0 to 1. They sum to 1 over all classes, unless an image may have several labels:
            then each is one of its own.
    """

    path: Path
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """Its probability, from 0 to 1."""
        return self.probabilities[0]


@dataclass(frozen=True, kw_only=True)
class FailedPrediction:
    """An image that could not be read, and the reason."""

    path: Path
    reason: str


def predict(
    run: str | Path,
    paths: str | Path | Sequence[str | Path],
    top: int = 5,
    *,
    batch_size: int = 32,
    device: str | None = None,
) -> list[Prediction]:
    """The most probable classes of images, in the order of the images.

    Args:
        run: A run folder, or a folder by `save_model`. Without labels there, classes are called by their number.
        paths: Image files, folders of images, or patterns such as ``"photos/*.jpg"``.
        top: How many classes to give for each image; no more than there are.
        batch_size: Images at once.
        device: Where to compute, for example ``"cuda"``; None: the machine's accelerator if it has one.

    Raises:
        ValueError: If the run is not as it must be, or a file is not a readable image.
        FileNotFoundError: If there is no such file.
    """
    predictions = []
    for prediction in predict_each(run, paths, top, batch_size=batch_size, device=device):
        if isinstance(prediction, FailedPrediction):
            kind = ValueError if prediction.path.exists() else FileNotFoundError
            raise kind(prediction.reason)
        predictions.append(prediction)
    return predictions


def predict_each(
    run: str | Path,
    paths: str | Path | Sequence[str | Path],
    top: int = 5,
    *,
    batch_size: int = 32,
    device: str | None = None,
) -> Iterator[Prediction | FailedPrediction]:
    """The same one by one, as they come; an image that cannot be read is one of the results, and not the end.

    Raises:
        ValueError: If the run is not as it must be, or a folder or pattern holds no images.
    """
    check_count("top", top)
    check_count("batch_size", batch_size)
    files = find_files([paths] if isinstance(paths, (str, Path)) else paths)
    config = read_config(run)
    preprocessing = Preprocessing.from_pretrained_cfg(config["pretrained_cfg"])
    where = choose_device(device)
    model = load_model(run, where)
    names = config.get("label_names") or [str(index) for index in range(model.num_classes)]
    to_probabilities = torch.sigmoid if is_multi_label(config) else lambda logits: logits.softmax(1)
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        loaded = [_load(path, preprocessing) for path in batch]
        pixels = [each for each in loaded if isinstance(each, torch.Tensor)]
        best = iter(_best(model, preprocessing, pixels, top, where, to_probabilities))
        for path, each in zip(batch, loaded, strict=True):
            if isinstance(each, FailedPrediction):
                yield each
            else:
                values, indices = next(best)
                labels = tuple(names[index] for index in indices)
                yield Prediction(path=path, labels=labels, probabilities=tuple(values))


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files that paths, folders and patterns mean, in that order; those of a folder or pattern sorted.

    Raises:
        ValueError: If a folder holds no images, or a pattern fits nothing.
    """
    files: list[Path] = []
    for path in paths:
        if Path(path).is_dir():
            found = list(images_below(Path(path)))
        elif Path(path).exists() or not any(sign in str(path) for sign in "*?["):
            found = [Path(path)]
        else:
            matches = sorted(Path(name) for name in glob(str(path), recursive=True))  # noqa: PTH207  # absolute patterns
            found = [file for each in matches for file in (images_below(each) if each.is_dir() else [each])]
        if not found:
            raise ValueError(f"{path} holds no images: give image files, a folder of them, or a pattern that fits some")
        files += found
    return files


@torch.inference_mode()
def _best(
    model: nn.Module,
    preprocessing: Preprocessing,
    pixels: Sequence[torch.Tensor],
    top: int,
    where: torch.device,
    to: Any,
) -> list[tuple[list[float], list[int]]]:
    if not pixels:
        return []
    probabilities = to(model(preprocessing.normalise(torch.stack(list(pixels)).to(where))))  # (b, classes)
    best = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    return list(zip(best.values.tolist(), best.indices.tolist(), strict=True))


def _load(path: Path, preprocessing: Preprocessing) -> torch.Tensor | FailedPrediction:
    try:
        return preprocessing.load(path)
    except (ValueError, OSError) as error:
        return FailedPrediction(path=path, reason=str(error))
