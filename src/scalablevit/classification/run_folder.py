"""The folder that a training run leaves behind."""

from __future__ import annotations

import csv
import json
import platform
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

import yaml

from scalablevit.classification.images import LabelledImages
from scalablevit.classification.scores import AnyResult
from scalablevit.suggestions import nearest_path

PACKAGES = ("scalablevit", "torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One row of ``metrics.csv``.

    Args:
        epoch: From 1.
        train_loss: Mean over the epoch's steps, of augmented images and smoothed labels.
        val_loss: Mean cross-entropy after the epoch.
        val_score: Per cent, after the epoch: top-1, or mAP where images have several labels.
        learning_rate: In the epoch's last step.
        seconds: The epoch took, validation included.
        images_per_second: In training.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_score: float
    learning_rate: float
    seconds: float
    images_per_second: float


def best_row(rows: Sequence[EpochMetrics]) -> EpochMetrics:
    """The epoch with the highest score, of equals the one with the lowest loss, of equals the first."""
    # As metrics.csv has them, so that a run that is resumed decides as one that was not.
    return max(rows, key=lambda row: (float(f"{row.val_score:.6g}"), -float(f"{row.val_loss:.6g}"), -row.epoch))


@dataclass(frozen=True)
class RunFolder:
    """The names of what a run folder holds, and how it is written and read."""

    path: Path

    @property
    def config_file(self) -> Path:
        """Everything needed to run it again."""
        return self.path / "config.yaml"

    @property
    def versions_file(self) -> Path:
        """The versions that ran, and the seed."""
        return self.path / "versions.json"

    @property
    def metrics_file(self) -> Path:
        """One row per epoch; see `EpochMetrics`."""
        return self.path / "metrics.csv"

    @property
    def evaluation_file(self) -> Path:
        """The scores of the saved weights; see `EvaluateResult`."""
        return self.path / "evaluate.json"

    @property
    def checkpoints(self) -> Path:
        """Lightning's checkpoints of the last two states, and of the best epoch."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """The last state that was saved; what a run is resumed from."""
        return self.checkpoints / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """The one before it, for where that is damaged."""
        return self.checkpoints / "previous.ckpt"

    @property
    def non_finite(self) -> Path:
        """Steps whose loss or gradients were no finite numbers."""
        return self.path / "non_finite"

    @property
    def wandb_id_file(self) -> Path:
        """Under which Weights & Biases knows the run, for when it is resumed."""
        return self.path / "wandb-id.txt"

    @property
    def split_file(self) -> Path:
        """Which images were trained on, and which kept for validation, where that was drawn."""
        return self.path / "split.csv"

    @property
    def images_file(self) -> Path:
        """The classes and the numbers of images that the run began with."""
        return self.path / "images.json"

    @property
    def best_checkpoint(self) -> Path:
        """The weights of the epoch with the highest score."""
        return self.checkpoints / "best.ckpt"

    @property
    def skipped_file(self) -> Path:
        """Images that could not be read, with the reasons."""
        return self.path / "skipped.json"

    @property
    def input_rate_file(self) -> Path:
        """How fast images were read, and trained on, in the last epoch; see `InputRate`."""
        return self.path / "input_rate.json"

    @property
    def report(self) -> Path:
        """Pictures, and a page of them."""
        return self.path / "report"

    def evaluation_of(self, name: str) -> RunFolder:
        """Where the evaluation on other data than the run's own goes."""
        return RunFolder(self.path / "evaluations" / name)

    @classmethod
    def create(cls, path: str | Path, *, overwrite: bool) -> RunFolder:
        """A new, empty run folder.

        Args:
            path: Where. What is there is kept, unless it is an empty folder.
            overwrite: Whether an earlier run folder that is there may be replaced. It is set aside until
                `remove_replaced`, so that a run that fails loses nothing.

        Raises:
            ValueError: If something is there that is not to be replaced.
        """
        folder = cls(Path(path))
        folder.check_free(overwrite=overwrite)
        if folder.path.exists() and any(folder.path.iterdir()):
            if folder.has_replaced:
                shutil.rmtree(folder.path)  # incomplete: what it has set aside stays there
            else:
                folder.path.rename(folder.replaced)
            folder.path.mkdir(parents=True)
            folder._marker.touch()
        folder.path.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def replaced(self) -> Path:
        """Where the run folder that this one replaces waits until this one is complete."""
        return self.path.with_name(f"{self.path.name}.replaced")

    @property
    def has_replaced(self) -> bool:
        """Whether this run has set another one aside."""
        return self._marker.is_file()

    @property
    def _marker(self) -> Path:
        return self.path / ".has-replaced"

    def remove_replaced(self) -> None:
        """Removes the run folder that this one set aside, if it did."""
        if self.has_replaced:
            shutil.rmtree(self.replaced, ignore_errors=True)
            self._marker.unlink()

    def discard(self) -> None:
        """Removes a run that came to nothing, and puts back what it had set aside."""
        had_replaced = self.has_replaced
        shutil.rmtree(self.path)
        if had_replaced:
            self.replaced.rename(self.path)

    def check_free(self, *, overwrite: bool) -> None:
        """Raises a ValueError unless `create` may make this folder."""
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not self.is_run_folder():
            raise ValueError(
                f"{self.path} exists and is not a run folder, so it is neither used nor removed: give another --out"
            )
        if not overwrite:
            raise ValueError(
                f"{self.path} holds an earlier run: give another --out, --overwrite to replace it, or go on with it:"
                f" --resume {self.path}"
            )
        if self.replaced.exists() and not self.has_replaced:
            raise ValueError(f"{self.replaced} is in the way, where the earlier run would be set aside: move it")

    def is_run_folder(self) -> bool:
        """Whether a training run made the folder."""
        try:
            versions = json.loads(self.versions_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(versions, dict) and "scalablevit" in versions and self.config_file.is_file()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.yaml, which the command line takes with ``--config``."""
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        write_whole(self.config_file, text)

    def write_versions(self, seed: int) -> None:
        """Writes versions.json, from what is installed."""
        versions: dict[str, Any] = {"seed": seed, "python": platform.python_version(), "platform": platform.platform()}
        for package in PACKAGES:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = None
        write_json(self.versions_file, versions)

    def append_metrics(self, row: EpochMetrics) -> None:
        """Adds a row to metrics.csv."""
        is_new = not self.metrics_file.exists()
        with self.metrics_file.open("a", newline="", encoding="utf-8") as file:
            _write_rows(file, [row], header=is_new)

    def write_metrics(self, rows: Sequence[EpochMetrics]) -> None:
        """Makes metrics.csv of these rows alone; no file if there are none."""
        if not rows:
            self.metrics_file.unlink(missing_ok=True)
            return
        text = StringIO()
        _write_rows(text, rows, header=True)
        write_whole(self.metrics_file, text.getvalue())

    def read_metrics(self) -> list[EpochMetrics]:
        """The rows of metrics.csv."""
        with self.metrics_file.open(newline="", encoding="utf-8") as file:
            return [
                EpochMetrics(epoch=int(row.pop("epoch")), **{name: float(value) for name, value in row.items()})
                for row in csv.DictReader(file)
            ]

    def read_config(self) -> dict[str, Any]:
        """What config.yaml says.

        Raises:
            ValueError: If there is no run.
        """
        if not self.is_run_folder():
            hint = "" if self.path.exists() else nearest_path(self.path)
            raise ValueError(f"{self.path} is not a run folder{hint}: give the --out of a training run")
        try:
            config = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{self.config_file} is not YAML: {error}") from error
        if not isinstance(config, dict) or "data" not in config:
            raise ValueError(f"{self.config_file} does not name the data of the run: put back what was there")
        return config

    def read_versions(self) -> dict[str, Any]:
        """What versions.json says; nothing if there is none."""
        if not self.versions_file.is_file():
            return {}
        return dict(json.loads(self.versions_file.read_text(encoding="utf-8")))

    def write_skipped(self, reasons: Mapping[str, str]) -> None:
        """Writes the images that could not be read; no file if there are none."""
        if reasons:
            write_json(self.skipped_file, reasons)

    def read_skipped(self) -> dict[str, str]:
        """The images that training could not read, with the reasons."""
        if not self.skipped_file.is_file():
            return {}
        return dict(json.loads(self.skipped_file.read_text(encoding="utf-8")))

    def write_input_rate(self, rate: Mapping[str, Any]) -> None:
        """Writes input_rate.json."""
        write_json(self.input_rate_file, rate)

    def read_input_rate(self) -> dict[str, Any]:
        """What input_rate.json says; nothing if there is none."""
        if not self.input_rate_file.is_file():
            return {}
        return dict(json.loads(self.input_rate_file.read_text(encoding="utf-8")))

    def write_images(self, training: LabelledImages, validation: LabelledImages) -> None:
        """Writes what `check_images` compares."""
        write_json(self.images_file, _facts_of_images(training, validation))

    def check_images(self, training: LabelledImages, validation: LabelledImages) -> None:
        """Raises a ValueError if the images are not those that the run began with."""
        before = json.loads(self.images_file.read_text(encoding="utf-8")) if self.images_file.is_file() else None
        now = _facts_of_images(training, validation)
        if before != now:
            raise ValueError(
                f"the images are not those that the run in {self.path} began with ({before}; now {now}): put them back,"
                " or start another run"
            )

    def read_evaluation(self) -> dict[str, Any]:
        """What evaluate.json says; nothing if there is none."""
        if not self.evaluation_file.is_file():
            return {}
        return dict(json.loads(self.evaluation_file.read_text(encoding="utf-8")))

    def write_evaluation(self, result: AnyResult) -> None:
        """Writes evaluate.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.evaluation_file, asdict(result))


def _facts_of_images(training: LabelledImages, validation: LabelledImages) -> dict[str, Any]:
    return {"classes": list(training.classes), "training": len(training), "validation": len(validation)}


def format_number(value: float) -> str:
    """A number with six digits, whole ones without a point."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _write_rows(file: TextIO, rows: Iterable[EpochMetrics], *, header: bool) -> None:
    writer = csv.DictWriter(file, [field.name for field in fields(EpochMetrics)], lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({name: format_number(value) for name, value in asdict(row).items()})


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """The same with JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    # Rows of numbers on one line. The line break tells them from strings, which hold none.
    text = re.sub(r"\[\n[\s\d,]*\]", lambda match: " ".join(match[0].split()), text)
    write_whole(path, text + "\n")
