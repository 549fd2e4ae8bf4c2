"""Lightning's Trainer, set up for a run folder."""

from __future__ import annotations

import copy
import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from scalablevit.classification.checkpoint_files import read_checkpoint
from scalablevit.classification.checkpoints import Checkpoints, CheckpointStorage, find_saved_state, restore_best
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.devices import Processes, make_environment, make_strategy
from scalablevit.classification.experiment_logs import MetricsLogging, open_loggers
from scalablevit.classification.non_finite import NonFiniteGuard
from scalablevit.classification.progress import InputRateRecorder, MetricsRecorder
from scalablevit.classification.run_folder import EpochMetrics, RunFolder, best_row
from scalablevit.classification.stopping import StopSignals
from scalablevit.classification.task import ClassificationTask

# Advice that does not fit, as regular expressions of how it starts: images in memory want no workers, a small set has
# fewer steps than Lightning's interval of logging, which is not used, the order of images goes on where it was without
# Lightning's help, all processes have the scores of all images, gradients of convolutions lie in two orders in memory,
# a deprecation in Lightning's own code, and that of a single process fsdp leaves everything whole.
_UNFIT_ADVICE = (
    r"The '\w+_dataloader' does not have many workers",
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    "You're resuming from a checkpoint that ended before the epoch ended",
    "Grad strides do not match bucket view strides",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"It is recommended to use `self.log\(.*sync_dist=True",
    "FSDP is switching to use `NO_SHARD` instead of ShardingStrategy.FULL_SHARD since the world size is 1",
    "When using ``NO_SHARD`` for ``ShardingStrategy``",
)


def fit(
    task: ClassificationTask,
    training: DataLoader[Any],
    validation: DataLoader[Any],
    config: TrainConfig,
    folder: RunFolder,
    stop: StopSignals,
    callbacks: Sequence[Any] = (),
    *,
    resume: bool = False,
) -> tuple[list[EpochMetrics], int]:
    """Trains, and leaves the weights of the best epoch, or, if the options say so, of the last in the task, in that of
    the first process.

    Args:
        task: What is trained.
        training: Batches to train on.
        validation: Batches to choose the best epoch by.
        config: The options of the run.
        folder: Where checkpoints and metrics go.
        stop: The signals that end the run.
        callbacks: More of Lightning's callbacks, for example a display of progress.
        resume: Whether to go on from the newest state that the folder has a whole checkpoint of.

    Returns:
        The metrics of all epochs, and the epoch whose weights are left, from 1.

    Raises:
        ValueError: If the machine has no such accelerator, or not with such a precision, or no checkpoint is whole.
        TrainingFault: If the loss or a gradient is no finite number.
        StoppedBySignal: If a signal asked the run to end. It can be resumed.
        KeyboardInterrupt: If the run was interrupted. It can be resumed.
    """
    processes, whole = task.processes, copy.deepcopy(task.model) if config.strategy == "fsdp" else task.model
    recorder = MetricsRecorder(folder, writes=processes.is_first)
    checkpoints = Checkpoints(folder, recorder, config, stop)
    state = find_saved_state(folder) if resume else None
    if state is not None:
        if config.keep == "best":
            checkpoints.first_candidate = restore_best(folder, state, write=processes.is_first)
        batches: Any = training.batch_sampler
        batches.sampler.start_at(state.epoch, state.batches * batches.batch_size)
        task.notes = (*task.notes, str(state))
    elif processes.is_first:
        folder.write_metrics(())
    first_step = 0 if state is None else int(state.content["global_step"]) + 1
    opened: AbstractContextManager[list[Any]] = nullcontext([])
    if processes.is_first:
        opened = open_loggers(config, folder, first_step=first_step)
    with quiet_lightning(), stop.deferred(), opened as loggers:
        logging_rows = MetricsLogging(recorder, loggers)  # before checkpoints, after which a run may end
        own = [recorder, logging_rows, InputRateRecorder(folder), NonFiniteGuard(folder), checkpoints]
        trainer = make_trainer(config, folder, [*own, *callbacks], processes)
        with interrupts_as_exceptions(trainer):
            trainer.fit(task, training, validation, ckpt_path=None if state is None else state.file)
    candidates = recorder.rows[checkpoints.first_candidate - 1 :] or recorder.rows
    kept_epoch = best_row(candidates).epoch if config.keep == "best" else recorder.rows[-1].epoch
    if processes.is_first:
        task.model = whole  # fsdp has cut the other into pieces
        file = folder.best_checkpoint if config.keep == "best" else folder.last_checkpoint
        task.load_state_dict(read_checkpoint(file)["state_dict"])
    return recorder.rows, kept_epoch


def make_trainer(config: TrainConfig, folder: RunFolder, callbacks: Sequence[Any], processes: Processes) -> Any:
    """Lightning's Trainer with the options of a run, and nothing that writes or prints by itself."""
    try:
        return pl.Trainer(
            accelerator=config.accelerator,
            devices=processes.per_node,
            num_nodes=processes.nodes,
            strategy=make_strategy(config, processes),
            precision=config.precision,
            max_epochs=config.epochs,
            gradient_clip_val=config.clip or None,
            accumulate_grad_batches=config.accumulate,
            plugins=[CheckpointStorage(folder), make_environment(processes)],
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


@contextmanager
def interrupts_as_exceptions(trainer: Any) -> Iterator[None]:
    """Signals that end a run come out as Python has them, where Lightning ends the process with a code of its own."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
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
