"""Where the metrics of a run go beside ``metrics.csv``: TensorBoard, Weights & Biases, through Lightning's loggers."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl

from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.progress import MetricsRecorder
from scalablevit.classification.run_folder import RunFolder

EVERY_STEPS = 50  # the loss is logged within an epoch


@contextmanager
def open_loggers(config: TrainConfig, folder: RunFolder, *, first_step: int) -> Iterator[list[Any]]:
    """Lightning's loggers that the options name, closed at the end.

    Args:
        config: The options of the run, which are logged too.
        folder: Of the run; files of loggers go there.
        first_step: Where a run goes on, TensorBoard forgets what it has of this and later steps.

    Raises:
        ValueError: If a service cannot be reached, or knows no account.
    """
    makers = {"tensorboard": _tensorboard, "wandb": _wandb}
    loggers = []
    try:
        for name in config.log:
            loggers.append(makers[name](folder, first_step))
            loggers[-1].log_hyperparams(asdict(config))
        yield loggers
    finally:
        for logger in loggers:
            logger.finalize("finished")
        if "wandb" in config.log and loggers:
            import wandb

            wandb.finish()


def _tensorboard(folder: RunFolder, first_step: int) -> Any:
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(
        folder.path, name="tensorboard", version="", default_hp_metric=False, purge_step=first_step or None
    )


def _wandb(folder: RunFolder, first_step: int) -> Any:
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    if not folder.wandb_id_file.is_file():
        folder.wandb_id_file.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    try:
        # Not by Lightning, which asks for anonymous logging, of which wandb warns since there is none any more.
        run = wandb.init(
            name=folder.path.name,
            dir=folder.path,
            project=os.environ.get("WANDB_PROJECT", "scalablevit"),
            id=folder.wandb_id_file.read_text(encoding="utf-8"),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
    except wandb.errors.Error as error:
        raise ValueError(
            f"wandb cannot log: {' '.join(str(error).split())}: run `wandb login`, set WANDB_MODE=offline, or leave it"
            " out of --log"
        ) from error
    run.define_metric("trainer/global_step")  # where Lightning writes the step
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run)


class MetricsLogging(pl.Callback):
    """Logs each row of metrics, and the loss of a step now and then, at the number of steps so far.

    Args:
        recorder: Of the rows.
        loggers: Lightning's.
    """

    def __init__(self, recorder: MetricsRecorder, loggers: Sequence[Any]) -> None:
        self.recorder = recorder
        self.loggers = loggers

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the loss, rarely, as reading its value makes an accelerator wait."""
        is_step = (batch_idx + 1) % pl_module.config.accumulate == 0
        if self.loggers and is_step and trainer.global_step % EVERY_STEPS == 0 and pl_module.loss is not None:
            self._log({"step_loss": float(pl_module.loss)}, trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Logs the row of the epoch."""
        self._log(asdict(self.recorder.rows[-1]), trainer.global_step)

    def _log(self, metrics: dict[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)
