"""Evaluating a saved model on labelled images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from scalablevit.classification.csv_files import read_table
from scalablevit.classification.data import Batch, DecodedImages, EvaluationSet, UnreadableImages, collate
from scalablevit.classification.images import LabelledImages
from scalablevit.classification.input_rate import InputRate
from scalablevit.classification.option_checks import check_range
from scalablevit.classification.readers import is_set, name_of_set, short_name
from scalablevit.classification.run_folder import EpochMetrics, RunFolder
from scalablevit.classification.scores import Answers, AnyResult, Scores, score_answers
from scalablevit.classification.sources import SAMPLE, Parts, find_evaluation_data, find_training_data
from scalablevit.configuration import check_count
from scalablevit.extras import require_extra
from scalablevit.images import ImagePlace
from scalablevit.prepacking import prepack
from scalablevit.preprocessing import Preprocessing
from scalablevit.weights import is_multi_label, load_model, read_config


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's answers to images, and how right they are.

    Args:
        result: The scores.
        answers: What the model said.
        paths: Of which images.
    """

    result: AnyResult
    answers: Answers
    paths: tuple[ImagePlace, ...]


def evaluate(
    run: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    batch_size: int = 256,
    workers: int = 0,
    device: str | None = None,
    max_unreadable: float = 0.01,
    report: bool = True,
) -> AnyResult:
    """Scores a saved model on labelled images, and leaves ``evaluate.json`` and a report in its folder.

    For the data that a run was trained on they are those of the run itself; for others they go to
    ``evaluations/<name of the data>/`` in it. Where the run has drawn its validation images, only those are used.

    Args:
        run: A run folder, or a folder by `save_model` with labels.
        data: A folder with val/, or of class folders, or any other form that `train` takes.
        split: ``"train"``, ``"val"`` or ``"test"``, or a part of a set; None: for a run's own data what it was
            validated with, else val where the data are told apart, else all images.
        batch_size: Images at once.
        workers: Processes that read images; 0: this one does.
        device: Where to compute, for example ``"cuda"``; None: the machine's accelerator if it has one.
        max_unreadable: The fraction of the images that may be unreadable. They are skipped, and listed in the report.
        report: Whether to draw the report.

    Raises:
        ValueError: If the run or the data are not as they must be, or too many images cannot be read.
        MissingExtraError: If torchmetrics or matplotlib is not installed.
    """
    require_extra("train", "torchmetrics", "matplotlib")
    check_count("batch_size", batch_size)
    check_count("workers", workers, minimum=0)
    check_range("max_unreadable", max_unreadable, 0, 1)
    config = read_config(run)
    if "label_names" not in config:
        raise ValueError(f"the model in {run} has no names of classes, which evaluation needs: save it with labels")
    if len(config["label_names"]) == 1 and not is_multi_label(config):
        raise ValueError(
            f"the model in {run} has 1 class, {config['label_names'][0]!r}, so that no answer can be wrong: evaluate a"
            " model with at least 2"
        )
    folder, is_own = RunFolder(Path(run)), is_own_data(RunFolder(Path(run)), data)
    chosen = drawn_split(folder, data) or data
    options = folder.read_config() if folder.is_run_folder() else {}
    if is_own and is_set(data) and split in (None, "val"):
        images = _own_validation_images(options)
    else:
        images = find_evaluation_data(
            chosen,
            config["label_names"],
            multi_label=is_multi_label(config),
            split=split,
            target_key=options.get("target_key") if is_own else None,
        )
    where = choose_device(device)
    evaluation = evaluate_images(
        prepack(load_model(run, where)),
        images,
        Preprocessing.from_pretrained_cfg(config["pretrained_cfg"]),
        where,
        batch_size=batch_size,
        workers=workers,
        max_unreadable=max_unreadable,
    )
    result = replace(evaluation.result, data=name_of_data(data), trained_on=count_trained_on(folder, evaluation.paths))
    target = evaluation_folder(run, data, split)
    target.write_evaluation(result)
    if report:
        metrics = folder.read_metrics() if target == folder and folder.metrics_file.is_file() else []
        write_run_report(target, replace(evaluation, result=result), metrics, facts_of(config, result, folder))
    return result


def _own_validation_images(options: Mapping[str, Any]) -> LabelledImages:
    """Those of a run on a set, also where they were drawn."""
    parts = Parts(**{name: options.get(name) for name in ("train_split", "val_split", "target_key")})
    seed, fraction = options["seed"], options["val_fraction"]
    return find_training_data(options["data"], seed=seed, val_fraction=fraction, parts=parts).validation


def evaluate_images(
    model: Callable[[Tensor], Tensor],
    images: LabelledImages,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    batch_size: int,
    workers: int,
    max_unreadable: float,
) -> Evaluation:
    """Scores a model, in eval mode and on `device`, or what else makes logits of normalised images.

    Raises:
        ValueError: If too many images cannot be read.
    """
    # Each image is needed once, so none is kept.
    decoded = DecodedImages(images.paths, preprocessing.channels, limit_mb=0)
    dataset = EvaluationSet(decoded, images, preprocessing)
    # A generator of its own: a loader draws a seed for its workers, which is not to change what the caller draws.
    loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=collate, generator=torch.Generator())
    unreadable = UnreadableImages(len(images), max_unreadable)
    scores = Scores(images.classes)
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in loader:
            _score_batch(model, batch, preprocessing, device, scores, unreadable)
    answers = scores.answers()
    speed = len(answers.targets) / (time.perf_counter() - started)
    return Evaluation(
        result=replace(score_answers(answers), images_per_second=round(speed, 1), skipped=dict(unreadable.reasons)),
        answers=answers,
        paths=tuple(path for path in images.paths if str(path) not in unreadable.reasons),
    )


def _score_batch(
    model: Callable[[Tensor], Tensor],
    batch: Batch,
    preprocessing: Preprocessing,
    device: torch.device,
    scores: Scores,
    unreadable: UnreadableImages,
) -> None:
    unreadable.add(batch.unreadable)
    if len(batch.targets):
        scores.update(model(preprocessing.normalise(batch.pixels.to(device))), batch.targets)


def write_run_report(
    folder: RunFolder, evaluation: Evaluation, metrics: list[EpochMetrics], facts: Mapping[str, str]
) -> Path:
    """Draws the report of an evaluation into a run folder, and gives the path of its page."""
    from scalablevit.classification.report import write_report

    skipped = {**folder.read_skipped(), **evaluation.result.skipped}
    return write_report(
        folder.report,
        title=folder.path.name,
        result=evaluation.result,
        answers=evaluation.answers,
        paths=evaluation.paths,
        metrics=metrics,
        facts=facts,
        skipped=skipped,
        is_last_kept=bool(metrics) and folder.read_config().get("keep") == "last",
    )


def facts_of(config: Mapping[str, Any], result: AnyResult, folder: RunFolder) -> dict[str, str]:
    """What a reader of a report wants to know of how it came about."""
    _, height, width = config["pretrained_cfg"]["input_size"]
    facts = {
        "model": config["architecture"],
        "images seen at": f"{height} x {width} pixels",
        "evaluated on": result.data,
        "evaluation": f"{result.images_per_second:.0f} images/s, reading included",
    }
    if folder.metrics_file.is_file():
        rows = folder.read_metrics()
        speed = sum(row.images_per_second for row in rows) / max(len(rows), 1)
        options = folder.read_config()
        planned = options.get("epochs") or len(rows)
        early = f" of {planned}, ended early by a patience of {options['patience']}" if len(rows) < planned else ""
        facts["training"] = f"{len(rows)} epochs{early}, {speed:.0f} images/s, {sum(row.seconds for row in rows):.0f} s"
    if rate := folder.read_input_rate():
        facts["input"] = InputRate.from_json(rate).sentence()
    facts.update({name: str(value) for name, value in folder.read_versions().items() if value is not None})
    return facts


def evaluation_folder(run: str | Path, data: str | Path, split: str | None = None) -> RunFolder:
    """Where the evaluation of a model on data goes: the run itself for its own validation images, else below it."""
    folder = RunFolder(Path(run))
    if is_own_data(folder, data) and split in (None, "val"):
        return folder
    path = Path(name_of_data(data))
    own_name = short_name(data) if is_set(data) else path.stem if path.is_file() else path.name
    name = "-".join(filter(None, (own_name or "all", split)))
    target = folder.evaluation_of(name)
    if target.read_evaluation().get("data", name_of_data(data)) != name_of_data(data):  # other data of that name
        target = folder.evaluation_of(f"{name}-{sha256(str(path).encode()).hexdigest()[:8]}")
    return target


def count_trained_on(folder: RunFolder, paths: Sequence[ImagePlace]) -> int:
    """How many images a run, which drew its validation images, was trained on, by their names and folders."""
    if not folder.split_file.is_file():
        return 0
    trained = {row.path.parts[-2:] for row in read_table(folder.split_file).rows if row.split == "train"}
    return sum(path.absolute().parts[-2:] in trained for path in paths if isinstance(path, Path))


def is_own_data(folder: RunFolder, data: str | Path) -> bool:
    """Whether the data are those that the run was trained on."""
    return folder.is_run_folder() and folder.read_config().get("data") == name_of_data(data)


def are_drawn(run: str | Path, data: str | Path, split: str | None = None) -> bool:
    """Whether what `evaluate` scores are images that the run drew from its own data for validation."""
    return split in (None, "val") and drawn_split(RunFolder(Path(run)), data) is not None


def drawn_split(folder: RunFolder, data: str | Path) -> Path | None:
    """The file that says which images a run drew from its own data; None for other data, or where it drew none."""
    return folder.split_file if is_own_data(folder, data) and folder.split_file.is_file() else None


def name_of_data(data: str | Path) -> str:
    """How files name the data: in a way that holds from any working directory."""
    return SAMPLE if data == SAMPLE else name_of_set(data)


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
