"""Training a classifier on labelled images."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch

from scalablevit.classification.balance import class_weights
from scalablevit.classification.configuration import MAY_CHANGE, TrainConfig
from scalablevit.classification.csv_files import write_table
from scalablevit.classification.devices import find_processes, own_rank
from scalablevit.classification.evaluation import (
    Evaluation,
    choose_device,
    evaluate_images,
    facts_of,
    name_of_data,
    write_run_report,
)
from scalablevit.classification.faults import TrainingFault, explain, how_to_go_on
from scalablevit.classification.launching import exit_code, together
from scalablevit.classification.preparation import Prepared, prepare
from scalablevit.classification.run_folder import EpochMetrics, RunFolder
from scalablevit.classification.scores import AnyResult
from scalablevit.classification.stopping import StoppedBySignal, StopSignals
from scalablevit.extras import require_extra
from scalablevit.recipes import read_recipe, shorter_warmup
from scalablevit.trained import model_folder
from scalablevit.weights import load_model, read_config, save_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training run came to. The scores are of the saved weights.

    Args:
        run: The run folder.
        scores: On the validation images. Where they chose the best epoch, these are a little better than on images
            that nobody has looked at.
        best_epoch: The epoch, from 1, whose weights were saved: the one after which top-1 (or mAP) was highest, and of
            equals the loss lowest; the last one with the option ``keep="last"``.
        epochs: How many epochs were trained.
        ended_early: Whether these are fewer than the options say, as the `patience` was over.
        seconds: The run took, all included.
    """

    run: Path
    scores: AnyResult
    best_epoch: int
    epochs: int
    seconds: float
    ended_early: bool = False


def train(
    data: str | Path | None = None,
    out: str | Path = "",
    *,
    overwrite: bool = False,
    resume: bool = False,
    recipe: str | None = None,
    callbacks: Sequence[Any] = (),
    **options: Any,
) -> TrainResult:
    """Trains a model on labelled images, and leaves a run folder that holds all of it.

    The same options and seed give the same weights, on the same machine and with the same number of threads.

    With several devices the other processes run the same script, and all have the result.

    Args:
        data: A folder with train/<class>/ and val/<class>/, a folder of class folders, a CSV file, a folder of idx
            files, a set by its name (``"torch/NAME:FOLDER"``, ``"hfds/NAME"``, ``"wds/FOLDER"``), or ``"sample"`` for
            the embedded images.
        out: The run folder to make.
        overwrite: Whether an earlier run folder there is replaced.
        resume: Whether to go on with the run that is there, from the last state that it saved, with its own data and
            options. None of them is given then, but for those of `configuration.MAY_CHANGE`.
        recipe: The name of a recipe (`recipes.recipe_names`), whose options are taken where they are not given.
        callbacks: More of Lightning's callbacks.
        **options: The fields of `TrainConfig`, by name.

    Raises:
        ValueError: If the data are not as they must be, an option has no sense, or `out` is not free.
        TypeError: If `TrainConfig` has no such option.
        MissingExtraError: If Lightning is not installed.
        TrainingFault: If memory, the disk or a process failed the run, or its numbers are not finite. A checkpoint that
            was written before is whole.
        StoppedBySignal: If SIGTERM or SIGUSR1 asked the run to end. It has saved its state after the step.
        KeyboardInterrupt: If the run was interrupted. A note of it says how to go on, once there is a run to resume.
    """
    started = time.perf_counter()
    require_extra("train", "pytorch_lightning", "torchmetrics", "matplotlib")
    if not str(out):
        raise ValueError("out is not given: name the run folder")
    path = Path(out)
    if path.is_symlink() or not path.name:
        path = path.resolve()
    if recipe is not None:
        if resume:
            raise ValueError(f"recipe is {recipe!r}, but a run is resumed with its own options: leave recipe out")
        options = {**_recipe_options(recipe, options), **options}
    if resume:
        folder, prepared = _resume(path, data, options)
    else:
        folder, prepared = _begin(data, path, TrainConfig(**options), overwrite=overwrite)
    stop, is_first = StopSignals(), prepared.processes.is_first
    try:
        with stop.caught(), together(prepared.processes):
            rows, best_epoch, scores = _run(prepared, folder, callbacks, stop, resume=resume)
    except KeyboardInterrupt as interrupt:
        if not is_first:
            raise SystemExit(exit_code(interrupt)) from None
        interrupt.add_note(f"To go on: {how_to_go_on(folder.path)}")
        raise
    except Exception as error:
        if not is_first and isinstance(error, (StoppedBySignal, TrainingFault)):
            raise SystemExit(exit_code(error)) from None  # all end so together, and the first one says it
        is_saved = folder.last_checkpoint.is_file()
        if is_first and not (resume or is_saved or folder.non_finite.is_dir()):
            folder.discard()  # there is nothing to go on from
        fault = explain(error, prepared.config, folder.path, is_saved=is_saved)
        if fault is None:
            raise
        raise fault from error
    if is_first:
        folder.remove_replaced()
    return TrainResult(
        run=folder.path,
        scores=scores,
        best_epoch=best_epoch,
        epochs=len(rows),
        seconds=time.perf_counter() - started,
        ended_early=len(rows) < (prepared.config.epochs or 0),
    )


def _recipe_options(recipe: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the recipe, with a warm-up that fits into a shorter run, unless the caller gives one."""
    options, epochs = read_recipe(recipe), given.get("epochs")
    if isinstance(epochs, int) and epochs > 0 and "warmup_epochs" not in given:
        shorter = shorter_warmup(recipe, epochs)
        if shorter is not None:
            options["warmup_epochs"] = shorter.epochs
            logger.warning(shorter.remark)
    return options


def _check_changes(own: TrainConfig, options: dict[str, Any], out: Path) -> TrainConfig:
    """The options of a run with those given in their place, if a run may be resumed with them."""
    given = TrainConfig(**options)
    wrong = [
        f"{name} is {getattr(given, name)!r}, but the run in {out} has {getattr(own, name)!r}"
        for name in options
        if name not in MAY_CHANGE and getattr(given, name) != getattr(own, name)
    ]
    if wrong:
        raise ValueError(
            f"{'; '.join(wrong)}: a run is resumed with its own options, but for {', '.join(MAY_CHANGE)}; leave the"
            " others out, or start another run"
        )
    changed = replace(own, **{name: getattr(given, name) for name in options if name in MAY_CHANGE})
    if "fsdp" in (own.strategy, changed.strategy) and own.strategy != changed.strategy:
        raise ValueError(
            f"strategy is {changed.strategy!r}, but the run in {out} has {own.strategy!r}, and fsdp keeps the state of"
            " the optimiser in another order: leave --strategy out, or start another run"
        )
    return changed


def _run(
    prepared: Prepared, folder: RunFolder, callbacks: Sequence[Any], stop: StopSignals, *, resume: bool
) -> tuple[list[EpochMetrics], int, AnyResult]:
    """Trains and evaluates."""
    processes = prepared.processes
    # The run draws from PyTorch's global generator, which, on the CPU, is put back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(prepared.config.seed)
        rows, best_epoch = _fit(prepared, folder, callbacks, stop, resume=resume)
    scores = _evaluate(prepared, folder, rows).result if processes.is_first else None
    return rows, best_epoch, cast(AnyResult, processes.share(scores))


def _begin(data: str | Path | None, out: Path, config: TrainConfig, *, overwrite: bool) -> tuple[RunFolder, Prepared]:
    if data is None:
        raise ValueError("data is not given: name a folder of images, a CSV file, or 'sample'")
    processes = find_processes(config)
    if processes.is_first:
        RunFolder(out).check_free(overwrite=overwrite)
    if Path(data).resolve().is_relative_to(out.resolve()):
        raise ValueError(f"data {data} lies inside the run folder {out}: give another --out")
    if config.weights is not None:
        weights = model_folder(config.weights)
        if weights.resolve().is_relative_to(out.resolve()):
            raise ValueError(f"weights {config.weights} lie inside the run folder {out}: give another --out")
        if weights.exists() and weights == Path(config.weights):
            # So that the run can be resumed from any working directory.
            config = replace(config, weights=str(weights.resolve()))
    prepared = prepare(data, config)
    if prepared.data.drawn and Path(data).is_dir() and out.resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(f"out {out} lies inside the data {data}, and would be one of its classes: give another --out")
    _ = prepared.loaders  # decoded before the run folder is made, so that unreadable images leave nothing behind
    if not processes.is_first:  # another makes it, if it has not yet
        return RunFolder(out), prepared
    folder = RunFolder.create(out, overwrite=overwrite)
    try:
        _write_beginning(folder, data, prepared)
    except BaseException:  # also Ctrl-C: a run that is half written down can neither be resumed nor replaced
        folder.discard()
        raise
    return folder, prepared


def _write_beginning(folder: RunFolder, data: str | Path, prepared: Prepared) -> None:
    """Writes what a run is resumed with."""
    folder.write_config({"data": name_of_data(data), **_plain(asdict(prepared.config))})
    folder.write_versions(prepared.config.seed)
    training, validation = prepared.data.training, prepared.data.validation
    if prepared.data.drawn and training.are_files:  # else it is drawn again, from the seed
        write_table(folder.split_file, (("train", training), ("val", validation)))
    folder.write_images(training, validation)


def _resume(out: Path, data: str | Path | None, options: dict[str, Any]) -> tuple[RunFolder, Prepared]:
    folder = RunFolder(out)
    config = folder.read_config()
    own_data = config.pop("data")
    if data is not None and name_of_data(data) != own_data:
        raise ValueError(f"data is {data}, but the run in {out} is on {own_data}: leave data out, or start another run")
    unknown = next((name for name in config if name not in {each.name for each in fields(TrainConfig)}), None)
    if unknown is not None:
        raise ValueError(f"{folder.config_file} has the option {unknown}, which there is not: remove it")
    own = TrainConfig(**config)
    changed = _check_changes(own, options, out)
    if changed != own and own_rank() == 0:
        folder.write_config({"data": own_data, **_plain(asdict(changed))})
    own = changed
    prepared = prepare(folder.split_file if folder.split_file.is_file() else own_data, own)
    folder.check_images(prepared.data.training, prepared.data.validation)
    return folder, prepared


def _fit(
    prepared: Prepared, folder: RunFolder, callbacks: Sequence[Any], stop: StopSignals, *, resume: bool
) -> tuple[list[EpochMetrics], int]:
    """Trains, and saves the weights."""
    from scalablevit.classification.fitting import fit
    from scalablevit.classification.task import ClassificationTask

    training = prepared.data.training
    model = prepared.build_model()
    task = ClassificationTask(
        model,
        prepared.config,
        prepared.preprocessing,
        training.classes,
        prepared.unreadable,
        multi_label=training.multi_label,
        notes=[*prepared.notes, *map(str, prepared.choices)],
        processes=prepared.processes,
        class_weights=class_weights(training) if prepared.config.balance == "weights" else None,
    )
    fitted = fit(task, *prepared.loaders, prepared.config, folder, stop, callbacks, resume=resume)
    if not prepared.processes.is_first:
        return fitted
    save_model(
        task.trained_model,
        folder.path,
        training.classes,
        prepared.preprocessing.to_pretrained_cfg(),
        multi_label=training.multi_label,
    )
    folder.write_skipped(prepared.unreadable.reasons)
    return fitted


def _evaluate(prepared: Prepared, folder: RunFolder, rows: list[EpochMetrics]) -> Evaluation:
    """Scores what was saved, as `evaluate` would."""
    device = choose_device("cpu" if prepared.config.accelerator == "cpu" else None)
    evaluation = evaluate_images(
        load_model(folder.path, device),
        prepared.data.validation,
        prepared.preprocessing,
        device,
        batch_size=256,
        workers=prepared.config.workers or 0,
        max_unreadable=1.0,  # training has counted them among all images
    )
    result = replace(evaluation.result, data=folder.read_config()["data"])
    evaluation = replace(evaluation, result=result)
    folder.write_evaluation(result)
    write_run_report(folder, evaluation, rows, facts_of(read_config(folder.path), result, folder))
    return evaluation


def _plain(value: Any) -> Any:
    """The same with lists for tuples, as YAML has them."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return list(value) if isinstance(value, tuple) else value
