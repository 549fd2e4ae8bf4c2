"""When the state of a run is saved, and how it is found again."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins import CheckpointIO

from scalablevit.classification.checkpoint_files import damage, newest_whole, read_checkpoint, write_checkpoint
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.early_stopping import is_patience_over
from scalablevit.classification.faults import how_to_go_on
from scalablevit.classification.progress import MetricsRecorder, rows_of
from scalablevit.classification.run_folder import RunFolder, best_row
from scalablevit.classification.stopping import StopSignals

logger = logging.getLogger(__name__)


class CheckpointStorage(CheckpointIO):
    """Has Lightning write and read checkpoints as `checkpoint_files` does.

    Args:
        folder: Of the run. What was its last checkpoint is the one before it from then on.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint."""
        is_last = Path(path) == self.folder.last_checkpoint
        write_checkpoint(checkpoint, Path(path), previous=self.folder.previous_checkpoint if is_last else None)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """What a checkpoint holds, on the CPU; nothing else in it is run."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint."""
        Path(path).unlink(missing_ok=True)


class Checkpoints(pl.Callback):
    """Saves the state after each epoch, in between as often as the options say, and when a signal asks the run to end.

    There are three files, whose names do not change: the last state, the one before, and the weights of the best epoch.
    Lightning's own callback keeps the best score in the checkpoint, together with the place of the folder, and forgets
    it where that has moved. Here the rows of metrics say which epoch was best.

    Args:
        folder: Of the run.
        recorder: Of the rows of metrics.
        config: The options of the run.
        stop: The signals.

    Attributes:
        epoch: Complete ones.
        batches: That were trained on since.
        first_candidate: The epoch, from 1, from which on one may be the best; earlier ones are not kept any more.
    """

    def __init__(self, folder: RunFolder, recorder: MetricsRecorder, config: TrainConfig, stop: StopSignals) -> None:
        self.folder = folder
        self.recorder = recorder
        self.config = config
        self.stop = stop
        self.epoch = self.batches = 0
        self.first_candidate = 1
        self._saved_step = 0
        self._saved_s = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: where the run is."""
        return {"epoch": self.epoch, "batches": self.batches, "first_candidate": self.first_candidate}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins to measure, and takes the signals from Lightning, which would end the run without saving."""
        self.stop.take_over()
        self._note_saved(trainer)
        self._end_early(trainer)  # where the run that is resumed had ended so

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves the state if it is time to, but for the last batch of an epoch, after which the epoch's is saved."""
        self.epoch, self.batches = trainer.current_epoch, batch_idx + 1
        if self.batches % self.config.accumulate or self.batches == trainer.num_training_batches:
            return
        self._agree_to_stop(pl_module)
        if self.stop.received or pl_module.processes.largest(self._is_due(trainer), pl_module.device):
            self.save(trainer)
        self.stop.check(self._where(trainer))

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Ends the run if it is to, so that validation is done anew when it is resumed."""
        self._agree_to_stop(pl_module)
        if self.stop.received:
            self.save(trainer)
            self.stop.check(self._where(trainer))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Saves the state, after the row of metrics that belongs to it, and the weights if they are the best."""
        self.epoch, self.batches = trainer.current_epoch + 1, 0
        self.save(trainer)
        candidates = self.recorder.rows[self.first_candidate - 1 :]
        if self.config.keep == "best" and best_row(candidates) is candidates[-1]:
            trainer.save_checkpoint(self.folder.best_checkpoint, weights_only=True)
        self._agree_to_stop(pl_module)
        self._end_early(trainer)
        self.stop.check(self._where(trainer))

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Where all batches of an epoch are done, has Lightning begin with the validation when it goes on."""
        if self.batches and self.batches == trainer.num_training_batches:
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress = {"total": begun, "current": dict(begun), "is_last_batch": False}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = progress

    def save(self, trainer: Any) -> None:
        """Writes the last checkpoint; the one that was the last is the one before it from then on."""
        trainer.save_checkpoint(self.folder.last_checkpoint)
        self._note_saved(trainer)

    def _agree_to_stop(self, task: Any) -> None:
        """Has all processes stop if one of them is to."""
        received = task.processes.largest(self.stop.received or 0, task.device)
        self.stop.received = signal.Signals(received) if received else None

    def _end_early(self, trainer: Any) -> None:
        if is_patience_over(self.recorder.rows, self.config.patience):
            trainer.should_stop = True

    def _is_due(self, trainer: Any) -> bool:
        steps, minutes = self.config.checkpoint_every_steps, self.config.checkpoint_every_minutes
        if steps and trainer.global_step - self._saved_step >= steps:
            return True
        return bool(minutes) and time.monotonic() - self._saved_s >= 60 * minutes

    def _note_saved(self, trainer: Any) -> None:
        self._saved_step, self._saved_s = trainer.global_step, time.monotonic()

    def _where(self, trainer: Any) -> str:
        return (
            f"after step {trainer.global_step} of epoch {trainer.current_epoch + 1}; the state is saved; to go on:"
            f" {how_to_go_on(self.folder.path)}"
        )


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """A checkpoint that a run goes on from.

    Args:
        file: The checkpoint.
        content: What it holds.
    """

    file: Path
    content: Mapping[str, Any]

    @property
    def epoch(self) -> int:
        """Complete ones."""
        return int(self.content["callbacks"]["Checkpoints"]["epoch"])

    @property
    def batches(self) -> int:
        """That were trained on since."""
        return int(self.content["callbacks"]["Checkpoints"]["batches"])

    def __str__(self) -> str:
        within = f", {self.batches} batches of the next" if self.batches else ""
        return f"going on after step {self.content['global_step']}, which was after {self.epoch} epochs{within}"


def find_saved_state(folder: RunFolder) -> SavedState | None:
    """The newest state of a run that is whole; None if there is none yet.

    Raises:
        ValueError: If all are damaged.
    """
    file = newest_whole((folder.last_checkpoint, folder.previous_checkpoint))
    return None if file is None else SavedState(file=file, content=read_checkpoint(file))


def restore_best(folder: RunFolder, state: SavedState, *, write: bool = True) -> int:
    """Sees to it that the best checkpoint is that of the best epoch so far.

    It is not where the run was ended between the writing of the two, or where an older state is gone on from.

    Args:
        folder: Of the run.
        state: What is gone on from.
        write: Whether this process is the one that writes.

    Returns:
        The first epoch, from 1, that may be the best; where the weights of the best are lost, the next one.
    """
    first = int(state.content["callbacks"]["Checkpoints"]["first_candidate"])
    candidates = rows_of(state.content["callbacks"]["MetricsRecorder"])[first - 1 :]
    if not candidates:
        return first
    best = best_row(candidates)
    whole = folder.best_checkpoint.exists() and not damage(folder.best_checkpoint)
    if whole and int(read_checkpoint(folder.best_checkpoint)["epoch"]) + 1 == best.epoch:
        return first
    if state.epoch == best.epoch and not state.batches:
        names = ("epoch", "global_step", "state_dict", "unreadable")
        if write:
            write_checkpoint({name: state.content[name] for name in names}, folder.best_checkpoint)
        return first
    logger.warning("the weights of the best epoch so far, %d, are lost: the best of those to come is kept", best.epoch)
    return state.epoch + 1
