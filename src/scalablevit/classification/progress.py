"""What is told of a run while it runs: a row of metrics after each epoch, and a display for people."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from scalablevit.classification.input_rate import InputRate, TimedLoader, measure_reading, rate_of
from scalablevit.classification.run_folder import EpochMetrics, RunFolder
from scalablevit.classification.task import ClassificationTask
from scalablevit.weights.folder_config import architecture_name

logger = logging.getLogger(__name__)


class MetricsRecorder(pl.Callback):
    """Writes a row of ``metrics.csv`` after each epoch, and logs it.

    Args:
        folder: Where the row goes.
        writes: Whether this process is the one that writes.

    Attributes:
        rows: The rows so far.
    """

    def __init__(self, folder: RunFolder, *, writes: bool = True) -> None:
        self.folder = folder
        self.writes = writes
        self.rows: list[EpochMetrics] = []
        self._losses: list[torch.Tensor] = []
        self._images = 0
        self._started = self._trained = self._learning_rate = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the rows, and what the next one will be made of."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "losses": torch.stack(self._losses).cpu() if self._losses else torch.empty(0),
            "images": self._images,
            "seconds": self._trained or time.perf_counter() - self._started,
            "learning_rate": self._learning_rate,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with that."""
        self.rows = rows_of(state_dict)
        self._losses = list(state_dict["losses"])
        self._images, self._learning_rate = state_dict["images"], state_dict["learning_rate"]
        self._started, self._trained = time.perf_counter() - state_dict["seconds"], 0.0
        if self.writes:
            self.folder.write_metrics(self.rows)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins to measure."""
        self._losses, self._images, self._started, self._trained = [], 0, time.perf_counter(), 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Notes the loss; reading its value would make an accelerator wait."""
        if pl_module.loss is not None:  # as it is where no image of the batch could be read
            self._losses.append(pl_module.loss)
        self._images += pl_module.images
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Ends the time that counts as training."""
        self._trained = time.perf_counter() - self._started

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Writes the row."""
        losses = torch.stack(self._losses).cpu() if self._losses else torch.empty(0)
        row = EpochMetrics(
            epoch=trainer.current_epoch + 1,
            train_loss=float(losses[losses.isfinite()].mean()),  # without those of steps that were left out
            val_loss=float(trainer.callback_metrics["val_loss"]),
            val_score=float(trainer.callback_metrics["val_score"]),
            learning_rate=self._learning_rate,
            seconds=time.perf_counter() - self._started,
            images_per_second=self._images / self._trained,
        )
        self.rows.append(row)
        self._losses = []
        if not self.writes:
            return
        self.folder.append_metrics(row)
        logger.info(describe(row, score=score_name(pl_module)))


def rows_of(state: Mapping[str, Any]) -> list[EpochMetrics]:
    """The rows in what a checkpoint keeps of a `MetricsRecorder`."""
    return [EpochMetrics(**row) for row in state["rows"]]


class InputRateRecorder(pl.Callback):
    """Measures how fast images are read beside how fast they are trained on, and writes ``input_rate.json``.

    Where other processes read, they are measured by themselves before the first step, for some seconds.

    Args:
        folder: Where the file goes.

    Attributes:
        rate: Of the last epoch.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.rate: InputRate | None = None
        self._alone: float | None = None
        self._started = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measures reading alone."""
        loader = trainer.train_dataloader
        if isinstance(loader, TimedLoader) and loader.num_workers:
            batches: Any = loader.batch_sampler
            own = -(-batches.batch_size // trainer.world_size)
            self._alone = measure_reading(loader.dataset, batch_size=own, workers=loader.num_workers)
        self._started = time.perf_counter()  # an epoch that a run goes on within is not begun anew

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins to count."""
        self._started = time.perf_counter()
        if isinstance(trainer.train_dataloader, TimedLoader):
            trainer.train_dataloader.reset()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Writes what was counted."""
        loader = trainer.train_dataloader
        if isinstance(loader, TimedLoader) and loader.images:
            own = rate_of(loader, time.perf_counter() - self._started, self._alone)
            self.rate = own.times(trainer.world_size)  # other processes read and train as fast
            if trainer.is_global_zero:
                self.folder.write_input_rate(self.rate.to_json())


class ProgressDisplay(pl.Callback):
    """Shows how far a run is: a line per epoch, and on a terminal a bar below them.

    Where output goes into a file there is no bar, and a line every `interval_s` seconds within a long epoch.

    Args:
        console: Where to show it; None: standard output.
        interval_s: Seconds between lines within an epoch.
    """

    def __init__(self, console: Console | None = None, interval_s: float = 60.0) -> None:
        self.console = console or Console(highlight=False)
        self.interval_s = interval_s
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        self._bar = Progress(*columns, TextColumn("{task.fields[facts]}"), console=self.console, transient=True)
        self._started = self._epoch_started = self._last_line = 0.0
        self._steps = self._first_step = self._first_batch = 0
        self._told_rate = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Says what is trained, and puts up the bar."""
        for line in (*pl_module.notes, describe_task(pl_module, len(trainer.train_dataloader.dataset))):
            self._print(line)
        self._started = self._epoch_started = self._last_line = time.perf_counter()
        self._first_batch = trainer.fit_loop.batch_idx + 1  # not 0, where the run goes on within an epoch
        self._steps, self._first_step = int(trainer.estimated_stepping_batches), trainer.global_step
        if self.console.is_terminal:
            self._bar.add_task("starting", total=self._steps, facts="")
            self._bar.start()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins to measure the speed."""
        self._epoch_started, self._first_batch = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Moves the bar, or writes a line if there was none for long."""
        now = time.perf_counter()
        if self.console.is_terminal:
            # Ten times a second is enough for people, and keeps an accelerator from waiting for each loss.
            if now - self._last_line > 0.1:
                self._last_line = now
                facts = self._facts(trainer, outputs, batch, batch_idx, now)
                description = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
                task = self._bar.task_ids[0]
                self._bar.update(task, completed=trainer.global_step, description=description, facts=facts)
        elif now - self._last_line > self.interval_s:
            self._last_line = now
            facts = self._facts(trainer, outputs, batch, batch_idx, now)
            self._print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step}  {facts}")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Writes the line of the epoch."""
        self._last_line = time.perf_counter()
        recorder = next(callback for callback in trainer.callbacks if isinstance(callback, MetricsRecorder))
        line = describe(recorder.rows[-1], trainer.max_epochs, score_name(pl_module))
        self._print(f"{line}  {self._time_left(trainer)}")
        measured = next((callback for callback in trainer.callbacks if isinstance(callback, InputRateRecorder)), None)
        if measured is not None and measured.rate is not None and not self._told_rate:
            self._told_rate = True  # it hardly changes from epoch to epoch
            self._print(measured.rate.sentence())

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Takes the bar down."""
        self._stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Takes the bar down, so that the message of the error finds an ordinary terminal."""
        self._stop()

    def _stop(self) -> None:
        if self.console.is_terminal:  # elsewhere it would leave an empty line
            self._bar.stop()

    def _facts(self, trainer: Any, outputs: Any, batch: Any, batch_index: int, now: float) -> str:
        speed = (batch_index + 1 - self._first_batch) * trainer.lightning_module.images / (now - self._epoch_started)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        loss = math.nan if trainer.lightning_module.loss is None else float(trainer.lightning_module.loss)
        return f"loss {loss:.3f}  lr {rate:.1e}  {speed:.0f} images/s  {self._time_left(trainer)}"

    def _time_left(self, trainer: Any) -> str:
        per_step = (time.perf_counter() - self._started) / max(trainer.global_step - self._first_step, 1)
        return f"{format_seconds(per_step * (self._steps - trainer.global_step))} left"

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False)


def describe_task(task: ClassificationTask, images: int) -> str:
    """What is trained on how many images, as a line of text."""
    config, classes = task.config, len(task.scores.classes)
    network = architecture_name(task.model.config)
    assert config.size is not None
    count = task.processes.count
    devices = str(task.device) if count == 1 else f"{count} devices ({task.device.type})"
    millions = task.parameter_count / 1e6
    return (
        f"{network} with {millions:.2f} M parameters on {devices}; {images} images of {classes} classes,"
        f" at {config.size[0]}x{config.size[1]} pixels in {'grey' if config.channels == 1 else 'colour'}"
    )


def score_name(task: ClassificationTask) -> str:
    """What `EpochMetrics.val_score` is in a run."""
    return "mAP" if task.multi_label else "top-1"


def describe(row: EpochMetrics, epochs: int | None = None, score: str = "top-1") -> str:
    """A row of metrics as a line of text; `score` is the name of what `val_score` is."""
    return (
        f"epoch {row.epoch}{f'/{epochs}' if epochs else ''}  loss {row.train_loss:.3f}"
        f"  val loss {row.val_loss:.3f}  val {score} {row.val_score:.1f} %  lr {row.learning_rate:.1e}"
        f"  {row.images_per_second:.0f} images/s  {row.seconds:.1f} s"
    )


def format_seconds(seconds: float) -> str:
    """A time as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
