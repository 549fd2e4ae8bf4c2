"""Training a classifier on a folder of images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from scalablevit.classification.augmentation import Augmentation
from scalablevit.classification.configuration import LEARNING_RATES, TrainConfig
from scalablevit.classification.data import (
    SAMPLE,
    DecodedImages,
    EpochSampler,
    EvaluationSet,
    LabelledImages,
    TrainingSet,
    training_images,
)
from scalablevit.classification.evaluation import evaluate
from scalablevit.classification.run_folder import EpochMetrics, RunFolder
from scalablevit.extras import require_extra
from scalablevit.preprocessing import Preprocessing, measure_preprocessing
from scalablevit.scalable_vit import ScalableViT
from scalablevit.variants import VARIANTS
from scalablevit.weights import save_model


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training run came to. The scores are of the saved weights, which are those of the best epoch.

    Args:
        run: The run folder.
        top1: Per cent of validation images whose class has the highest score.
        top5: Per cent of validation images whose class is among the five highest scores.
        loss: Mean cross-entropy on the validation images.
        best_epoch: The epoch, from 1, after which `top1` was highest. The validation images chose it, so `top1` is a
            little better than on images that nobody has looked at.
        epochs: How many epochs were trained.
        seconds: The run took, all included.
    """

    run: Path
    top1: float
    top5: float
    loss: float
    best_epoch: int
    epochs: int
    seconds: float


def train(
    data: str | Path, out: str | Path, *, overwrite: bool = False, callbacks: Sequence[Any] = (), **options: Any
) -> TrainResult:
    """Trains a model on a folder of images, and leaves a run folder that holds all of it.

    The same options and seed give the same weights, on the same machine and with the same number of threads.

    Args:
        data: A folder with train/<class>/ and val/<class>/, or ``"sample"`` for the embedded images.
        out: The run folder to make.
        overwrite: Whether an earlier run folder there is replaced.
        callbacks: More of Lightning's callbacks.
        **options: The fields of `TrainConfig`, by name.

    Raises:
        ValueError: If the data are not as they must be, an option has no sense, or `out` is not free.
        TypeError: If `TrainConfig` has no such option.
        MissingExtraError: If Lightning is not installed.
    """
    started = time.perf_counter()
    require_extra("train", "pytorch_lightning", "matplotlib")
    config = TrainConfig(**options)
    RunFolder(Path(out)).check_free(overwrite=overwrite)
    if Path(data).resolve().is_relative_to(Path(out).resolve()):
        raise ValueError(f"data {data} lies inside the run folder {out}: give another --out")
    training, validation = training_images(data)
    preprocessing = measure_preprocessing(training.paths, size=config.size, channels=config.channels)
    config = resolve(config, preprocessing)
    # Decoded before the run folder is made, so that an unreadable image leaves nothing behind.
    loaders = make_loaders(training, validation, preprocessing, config)
    folder = RunFolder.create(out, overwrite=overwrite)
    folder.write_config({"data": data_for_config(data), **asdict(config)})
    folder.write_versions(config.seed)
    # The run draws from PyTorch's global generator, which, on the CPU, is put back as it was.
    with torch.random.fork_rng(devices=[]):
        model = build_model(config, len(training.classes))
        rows = _fit(model, loaders, preprocessing, training.classes, config, folder, callbacks)
    device = "cpu" if config.accelerator == "cpu" else None
    result = evaluate(folder.path, data, workers=config.workers, device=device)
    folder.remove_replaced()
    return TrainResult(
        run=folder.path,
        top1=result.top1,
        top5=result.top5,
        loss=result.loss,
        best_epoch=max(rows, key=lambda row: row.val_top1).epoch,
        epochs=len(rows),
        seconds=time.perf_counter() - started,
    )


def resolve(config: TrainConfig, preprocessing: Preprocessing) -> TrainConfig:
    """The options with what the images decided, so that the run can be repeated with other images around."""
    size = preprocessing.size[0]
    padding = size // 28 if config.padding is None else config.padding
    rate = LEARNING_RATES[config.optimizer] if config.learning_rate is None else config.learning_rate
    return replace(config, size=size, channels=preprocessing.channels, padding=padding, learning_rate=rate)


def build_model(config: TrainConfig, classes: int) -> ScalableViT:
    """The untrained model of a run; the seed alone says its weights."""
    torch.manual_seed(config.seed)
    return VARIANTS[config.model].build(classes, channels=config.channels, drop_path=config.drop_path)


def make_loaders(
    training: LabelledImages, validation: LabelledImages, preprocessing: Preprocessing, config: TrainConfig
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Batches to train on, and to validate on."""
    train_images = DecodedImages(training.paths, preprocessing.channels, limit_mb=config.memory_mb)
    val_images = DecodedImages(validation.paths, preprocessing.channels, limit_mb=config.memory_mb)
    augmentation = Augmentation(
        preprocessing=preprocessing,
        random_crop=config.random_crop,
        padding=config.padding or 0,
        smallest_area=config.smallest_area,
        flip=config.flip,
        erasing=config.erasing,
    )
    common: dict[str, Any] = {"num_workers": config.workers, "persistent_workers": config.workers > 0}
    train_loader = DataLoader(
        TrainingSet(train_images, training.labels, augmentation, seed=config.seed),
        config.batch_size,
        sampler=EpochSampler(len(training.paths), seed=config.seed),
        # A last, smaller batch would weigh its images more than others; which images are left out changes each epoch.
        drop_last=len(training.paths) >= config.batch_size,
        **common,
    )
    val_set = EvaluationSet(val_images, validation.labels, preprocessing)
    return train_loader, DataLoader(val_set, max(config.batch_size, 256), **common)


def data_for_config(data: str | Path) -> str:
    """How config.yaml names the data: in a way that holds from any working directory."""
    return SAMPLE if data == SAMPLE else str(Path(data).resolve())


def _fit(
    model: ScalableViT,
    loaders: tuple[DataLoader[Any], DataLoader[Any]],
    preprocessing: Preprocessing,
    classes: Sequence[str],
    config: TrainConfig,
    folder: RunFolder,
    callbacks: Sequence[Any],
) -> list[EpochMetrics]:
    """Trains, and saves the weights of the best epoch and the curves."""
    from scalablevit.classification.curves import save_curves
    from scalablevit.classification.fitting import fit
    from scalablevit.classification.task import ClassificationTask

    task = ClassificationTask(model, config, preprocessing, classes)
    rows = fit(task, *loaders, config, folder, callbacks)
    save_model(task.trained_model, folder.path, classes, preprocessing.to_pretrained_cfg())
    save_curves(rows, folder.curves_file)
    return rows
