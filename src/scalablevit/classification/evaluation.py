"""Evaluating a saved model on labelled images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from scalablevit.classification.data import DecodedImages, EvaluationSet, evaluation_images
from scalablevit.classification.run_folder import RunFolder
from scalablevit.classification.scores import EvaluateResult, Scores
from scalablevit.configuration import check_count
from scalablevit.preprocessing import Preprocessing
from scalablevit.weights import load_model, read_config


def evaluate(
    run: str | Path,
    data: str | Path,
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: str | None = None,
) -> EvaluateResult:
    """Scores a saved model on labelled images, and writes ``evaluate.json`` into its folder.

    Args:
        run: A run folder, or a folder by `save_model` with labels.
        data: A folder with val/, or of class folders, or ``"sample"``.
        batch_size: Images at once.
        workers: Processes that read images; 0: this one does.
        device: Where to compute, for example ``"cuda"``; None: the machine's accelerator if it has one.

    Raises:
        ValueError: If the run or the data are not as they must be.
    """
    check_count("batch_size", batch_size)
    check_count("workers", workers, minimum=0)
    config = read_config(run)
    if "label_names" not in config:
        raise ValueError(f"the model in {run} has no names of classes, which evaluation needs: save it with labels")
    images = evaluation_images(data, config["label_names"])
    preprocessing = Preprocessing.from_pretrained_cfg(config["pretrained_cfg"])
    # Each image is needed once, so none is kept.
    decoded = DecodedImages(images.paths, preprocessing.channels, limit_mb=0)
    dataset = EvaluationSet(decoded, images.labels, preprocessing)
    # A generator of its own: a loader draws a seed for its workers, which is not to change what the caller draws.
    loader = DataLoader(dataset, batch_size, num_workers=workers, generator=torch.Generator())
    where = choose_device(device)
    result = score(load_model(run, where), loader, preprocessing, images.classes, where)
    RunFolder(Path(run)).write_evaluation(result)
    return result


@torch.inference_mode()
def score(
    model: nn.Module,
    loader: DataLoader[tuple[torch.Tensor, int]],
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
    device: torch.device,
) -> EvaluateResult:
    """Scores a model, in eval mode and on `device`, on batches of (pixels, labels)."""
    scores = Scores(classes)
    for pixels, labels in loader:
        scores.update(model(preprocessing.normalise(pixels.to(device))), labels)
    return scores.result()


def choose_device(name: str | None) -> torch.device:
    """The device of that name; for None the machine's accelerator, or the CPU if it has none.

    Raises:
        ValueError: If PyTorch knows no such device, or the machine has none.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {name!r}, which cannot be used here: {str(error).splitlines()[0]}") from error
    return device
