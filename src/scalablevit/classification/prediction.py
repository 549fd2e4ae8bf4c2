"""What a saved model sees in images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scalablevit.classification.evaluation import choose_device
from scalablevit.configuration import check_count
from scalablevit.preprocessing import Preprocessing
from scalablevit.weights import load_model, read_config


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of one image.

    Args:
        path: The image.
        labels: Names of the classes, the most probable first.
        probabilities: Theirs, from 0 to 1.
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


@torch.inference_mode()
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
        paths: Image files.
        top: How many classes to give for each image; no more than there are.
        batch_size: Images at once.
        device: Where to compute, for example ``"cuda"``; None: the machine's accelerator if it has one.

    Raises:
        ValueError: If the run is not as it must be, or a file is not a readable image.
        FileNotFoundError: If there is no such file.
    """
    check_count("top", top)
    check_count("batch_size", batch_size)
    files = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    config = read_config(run)
    preprocessing = Preprocessing.from_pretrained_cfg(config["pretrained_cfg"])
    where = choose_device(device)
    model = load_model(run, where)
    names = config.get("label_names") or [str(index) for index in range(model.num_classes)]
    predictions = []
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        pixels = torch.stack([preprocessing.load(path) for path in batch]).to(where)
        probabilities = model(preprocessing.normalise(pixels)).softmax(1)  # (b, classes)
        best = probabilities.topk(min(top, model.num_classes), dim=1)
        for path, values, indices in zip(batch, best.values.tolist(), best.indices.tolist(), strict=True):
            labels = tuple(names[index] for index in indices)
            predictions.append(Prediction(path=path, labels=labels, probabilities=tuple(values)))
    return predictions
