"""What loggers are told is what metrics.csv says."""

import json

import pytest
import pytorch_lightning as pl
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scalablevit import extras
from scalablevit.classification import experiment_logs
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.run_folder import RunFolder
from scalablevit.classification.training import train
from scalablevit.cli import main
from scalablevit.extras import MissingExtraError
from tests.conftest import TINY


class Failing(pl.Callback):
    """Ends a run before its fifth step, which is the second of the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 4:
            raise RuntimeError("a defect")


def events(folder, tag):
    accumulator = EventAccumulator(str(folder.path / "tensorboard"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_tensorboard_has_the_rows_of_a_run_that_was_interrupted(data, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment_logs, "EVERY_STEPS", 1)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RuntimeError, match="a defect"):
        train(data, folder.path, **TINY, log="tensorboard", callbacks=[Failing()])
    assert folder.read_config()["log"] == ["tensorboard"]
    train(out=folder.path, resume=True)
    rows = folder.read_metrics()
    for name in ("train_loss", "val_loss", "val_score", "learning_rate"):
        expected = [(step, pytest.approx(getattr(row, name), rel=1e-4)) for step, row in zip((3, 6), rows, strict=True)]
        assert events(folder, name) == expected
    # The fourth step was logged by both, and is there once.
    assert [step for step, _ in events(folder, "step_loss")] == [1, 2, 3, 4, 5, 6]


def test_wandb_has_the_rows_and_the_options_without_a_network(data, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = RunFolder(tmp_path / "run")
    seen = []

    class Looking(pl.Callback):
        """Notes what Weights & Biases knows at the end."""

        def on_fit_end(self, trainer, pl_module):
            import wandb

            seen.append((dict(wandb.run.summary), dict(wandb.run.config), wandb.run.id, wandb.run.project))

    train(data, folder.path, **TINY, log=["wandb"], callbacks=[Looking()])
    summary, config, name, project = seen[0]
    row = folder.read_metrics()[-1]
    assert summary["val_score"] == pytest.approx(row.val_score, rel=1e-4)
    assert (summary["epoch"], summary["trainer/global_step"]) == (2, 6)
    assert config["learning_rate"] == folder.read_config()["learning_rate"]
    assert (name, project) == (folder.wandb_id_file.read_text(), "scalablevit")
    import wandb

    assert wandb.run is None  # so that the next run is another one there too
    assert list(folder.path.glob("wandb/offline-run-*/*.wandb"))
    assert "anonymous" not in capfd.readouterr().err  # of which wandb warns; of other packages it tells what it will


def test_a_log_that_is_named_twice_is_kept_once():
    assert TrainConfig(log=("wandb", "tensorboard", "wandb")).log == ("wandb", "tensorboard")


def test_what_is_missing_or_unknown_is_named(data, tmp_path, monkeypatch, capsys):
    with pytest.raises(
        ValueError, match=r"log is 'wandbb'; it must be one of 'tensorboard', 'wandb' .did you mean wandb"
    ):
        TrainConfig(log=("wandbb",))
    assert main(["train", str(data), "--out", str(tmp_path / "run"), "--log", "mlflow"]) == 2
    assert "mlflow" in capsys.readouterr().err
    find = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(MissingExtraError, match=r"wandb is not installed: install scalablevit\[wandb\]"):
        train(data, tmp_path / "run", **TINY, log="wandb")
    assert not (tmp_path / "run").exists()


def test_options_of_a_resumed_run_stay_as_they_are_unless_they_are_given(own_run):
    folder = RunFolder(own_run)
    assert main(["train", "--resume", str(own_run), "--log", "tensorboard"]) == 0
    assert folder.read_config()["log"] == ["tensorboard"]
    assert main(["train", "--resume", str(own_run)]) == 0
    assert json.loads(json.dumps(folder.read_config()["log"])) == ["tensorboard"]
