"""Lightning's Trainer, set up for a run folder."""

from __future__ import annotations

import logging
import pickle
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch.utils.data import DataLoader

from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.progress import MetricsRecorder
from scalablevit.classification.run_folder import EpochMetrics, RunFolder, best_row
from scalablevit.classification.task import ClassificationTask

# The exit code of a process that was told to end: 128 and the signal's number.
TERMINATED = 128 + signal.SIGTERM

# Advice that does not fit, as regular expressions of how it starts: images in memory want no workers, a small set has
# fewer steps than Lightning's interval of logging, which is not used, and a deprecation in Lightning's own code.
_UNFIT_ADVICE = (
    r"The '\w+_dataloader' does not have many workers",
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


def fit(
    task: ClassificationTask,
    training: DataLoader[Any],
    validation: DataLoader[Any],
    config: TrainConfig,
    folder: RunFolder,
    callbacks: Sequence[Any] = (),
    *,
    resume: bool = False,
) -> list[EpochMetrics]:
    """Trains, and leaves the weights of the best epoch in the task.

    Args:
        task: What is trained.
        training: Batches to train on.
        validation: Batches to choose the best epoch by.
        config: The options of the run.
        folder: Where checkpoints and metrics go.
        callbacks: More of Lightning's callbacks, for example a display of progress.
        resume: Whether to go on after the last epoch that the folder has a checkpoint of.

    Returns:
        The metrics of all epochs.

    Raises:
        ValueError: If the machine has no such accelerator, or not with such a precision.
        KeyboardInterrupt: If the run was interrupted. It can be resumed.
    """
    last = folder.last_checkpoint if resume and folder.last_checkpoint.is_file() else None
    recorder = MetricsRecorder(folder, folder.keep_metrics(int(read_checkpoint(last)["epoch"]) + 1 if last else 0))
    checkpoints = Checkpoints(folder, recorder)
    with quiet_lightning():
        trainer = make_trainer(config, [recorder, checkpoints, *callbacks])
        with interrupts_as_exceptions(trainer):
            trainer.fit(task, training, validation, ckpt_path=last)
    task.load_state_dict(read_checkpoint(folder.best_checkpoint)["state_dict"])
    return recorder.rows


def make_trainer(config: TrainConfig, callbacks: Sequence[Any]) -> Any:
    """Lightning's Trainer with the options of a run, and nothing that writes or prints by itself."""
    try:
        return pl.Trainer(
            accelerator=config.accelerator,
            devices=1,
            precision=config.precision,
            max_epochs=config.epochs,
            gradient_clip_val=config.clip or None,
            callbacks=list(callbacks),
            enable_checkpointing=False,
            logger=False,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise ValueError(f"accelerator {config.accelerator!r} cannot be used here: {error}") from error


class Checkpoints(pl.Callback):
    """Keeps the last epoch, and the best one, in files whose names do not change.

    Lightning's own callback keeps the best score in the checkpoint, together with the place of the folder, and forgets
    it where that has moved. Here the rows of metrics say which epoch was best.
    """

    def __init__(self, folder: RunFolder, recorder: MetricsRecorder) -> None:
        self.folder = folder
        self.recorder = recorder

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Writes the checkpoints, after the row of metrics that they belong to."""
        if best_row(self.recorder.rows) is self.recorder.rows[-1]:
            trainer.save_checkpoint(self.folder.best_checkpoint)
        trainer.save_checkpoint(self.folder.last_checkpoint)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """What a checkpoint holds.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise ValueError(
            f"{file} is damaged ({str(error).splitlines()[0]}): start the run again with --overwrite"
        ) from error


@contextmanager
def interrupts_as_exceptions(trainer: Any) -> Iterator[None]:
    """Signals that end a run come out as Python has them, where Lightning ends the process with a code of its own."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException:
        raise SystemExit(TERMINATED) from None
    except SystemExit:
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silences Lightning's announcements and its advice that does not fit. Its other warnings come through."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning", "lightning_fabric")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _UNFIT_ADVICE:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
