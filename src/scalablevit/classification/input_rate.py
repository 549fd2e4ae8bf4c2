"""How fast images are read beside how fast they are trained on, and which of the two is the limit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from scalablevit.classification.data import Batch, collate
from scalablevit.classification.machine_checks import available_cores
from scalablevit.classification.stopping import shield_worker

FEW_BATCHES = 16  # per worker process; a set of fewer is read before a measurement says anything
HIDDEN = 0.1  # of the time; a network that waits no longer than this is the limit itself


class TimedLoader(DataLoader[Any]):
    """A loader that knows how long it was waited for.

    Attributes:
        waited_s: Seconds that passed in waiting for batches, since `reset`.
        images: Of these batches.
    """

    waited_s = 0.0
    images = 0

    def reset(self) -> None:
        """Begins to count anew."""
        self.waited_s, self.images = 0.0, 0

    def __iter__(self) -> Any:
        return self._timed(super().__iter__())

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited_s += time.perf_counter() - started
            self.images += len(batch.targets)
            yield batch


@dataclass(frozen=True, kw_only=True)
class InputRate:
    """Reading beside training.

    Args:
        reads: Images per second that reading gives by itself, decoded and augmented; None: not measured, since it was
            faster than training.
        trains: Images per second that training takes by itself, its waiting for images left out.
        waiting: The fraction of the time that training waited for images.
        workers: Processes that read; 0: the training process does, in turn with training.
    """

    reads: float | None
    trains: float
    waiting: float
    workers: int

    @property
    def limit(self) -> str:
        """``"reading"``, ``"network"``, or ``"both"`` where they take turns and neither is much faster."""
        if self.waiting <= HIDDEN:
            return "network"
        if self.workers == 0 and self.waiting < 0.5:
            return "both"
        return "reading"

    def sentence(self) -> str:
        """The same in words."""
        reads = "" if self.reads is None else f"reads {self.reads:,.0f} images/s, "
        rates = f"{reads}trains {self.trains:,.0f} images/s"
        if self.limit == "network":
            return f"{rates}: the network is the limit"
        if self.limit == "both":
            return (
                f"{rates}, in turn, {100 * self.waiting:.0f} % of the time reading: --workers 1 reads beside training"
            )
        more = "raise --workers"
        if self.workers >= (cores := available_cores()):
            more = f"with {self.workers} workers for {cores} cores: smaller images, or more cores, help"
        return f"{rates}: reading is the limit, {100 * self.waiting:.0f} % of the time is waiting; {more}"

    def times(self, processes: int) -> InputRate:
        """Of so many processes, each as fast."""
        reads = None if self.reads is None else self.reads * processes
        return replace(self, reads=reads, trains=self.trains * processes)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> InputRate:
        """What `to_json` gave."""
        return cls(**{field.name: content[field.name] for field in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """The fields, and the limit."""
        rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return {**rounded, "limit": self.limit}


def rate_of(loader: TimedLoader, seconds: float, alone: float | None) -> InputRate:
    """What a loader says after training.

    Args:
        loader: After training with it.
        seconds: That training took, waiting included.
        alone: Images per second that `measure_reading` gave; None: not measured.
    """
    waiting = min(loader.waited_s / seconds, 1.0) if seconds else 0.0
    if loader.num_workers == 0:
        alone = loader.images / loader.waited_s if loader.waited_s else None
    elif waiting > HIDDEN and seconds:
        alone = loader.images / seconds  # all that the workers gave, at work beside training
    return InputRate(
        reads=alone,
        trains=loader.images / max(seconds - loader.waited_s, 1e-9),
        waiting=waiting,
        workers=loader.num_workers,
    )


def measure_reading(dataset: Dataset[Any], *, batch_size: int, workers: int, seconds: float = 2.0) -> float | None:
    """Images per second that reading and augmenting give with nothing beside them.

    The first batches of each worker are left out: its process begins with them, and they are read ahead.

    Args:
        dataset: A `TrainingSet`.
        batch_size: Images per batch.
        workers: Processes that read; 0: this one does.
        seconds: How long, at most, from the first batches on.

    Returns:
        The rate; None for a set of fewer than `FEW_BATCHES` batches per process, or if nothing could be read.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if count < FEW_BATCHES * batch_size * max(workers, 1):
        return None
    loader = DataLoader(
        dataset,
        batch_size,
        sampler=[(0, index) for index in range(count)],
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=shield_worker,
        generator=torch.Generator(),  # of its own, so that nothing else draws other numbers
    )
    images, started = 0, 0.0
    for number, batch in enumerate(loader):
        if number == max(workers, 1) * loader_stock(loader):
            images, started = 0, time.perf_counter()
        elif started:
            images += len(batch.targets)
            if time.perf_counter() - started > seconds:
                break
    return images / (time.perf_counter() - started) if started and images else None


def loader_stock(loader: DataLoader[Any]) -> int:
    """How many batches each worker has ready ahead."""
    return loader.prefetch_factor or 1
