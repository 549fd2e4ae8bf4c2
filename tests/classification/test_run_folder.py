"""What a run folder holds, and what is never removed."""

import json
from pathlib import Path

import pytest

from scalablevit.classification.run_folder import EpochMetrics, RunFolder, best_row, write_json


def finished(path):
    folder = RunFolder.create(path, overwrite=False)
    folder.write_config({"epochs": 3})
    folder.write_versions(7)
    return folder


def test_an_earlier_run_is_kept_unless_told_otherwise(tmp_path):
    folder = finished(tmp_path / "run")
    with pytest.raises(
        ValueError,
        match="holds an earlier run: give another --out, --overwrite to replace it, or go on with it: --resume",
    ):
        RunFolder.create(tmp_path / "run", overwrite=False)
    assert folder.config_file.exists()
    again = RunFolder.create(tmp_path / "run", overwrite=True)
    assert not again.config_file.exists()
    assert RunFolder(again.replaced).is_run_folder()
    again.remove_replaced()
    assert not again.replaced.exists()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_complete_run_survives_two_that_come_to_nothing(tmp_path):
    first = finished(tmp_path / "run")
    first.metrics_file.write_text("the first")
    for _ in range(2):
        again = RunFolder.create(tmp_path / "run", overwrite=True)
        again.write_config({"data": "x"})
        again.write_versions(1)
    again.discard()
    assert first.metrics_file.read_text() == "the first"
    assert not first.replaced.exists()


def test_a_folder_that_is_called_like_one_set_aside_is_not_touched(tmp_path):
    other = finished(tmp_path / "run.replaced")
    folder = finished(tmp_path / "run")
    folder.remove_replaced()
    assert other.config_file.exists()
    with pytest.raises(ValueError, match=r"run\.replaced is in the way"):
        RunFolder.create(tmp_path / "run", overwrite=True)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not YAML"), ("", "does not name the data"), ("a: 1", "data")]
)
def test_a_damaged_configuration_is_named(tmp_path, text, message):
    folder = finished(tmp_path / "run")
    folder.config_file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        folder.read_config()
    assert "config.yaml" in str(caught.value)


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_no_run_folder_is_never_removed(tmp_path, overwrite):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "config.yaml").write_text("mine")
    (tmp_path / "versions.json").write_text("[]")
    for name in ("thesis", "versions.json"):
        with pytest.raises(ValueError, match="is not a run folder, so it is neither used nor removed"):
            RunFolder.create(tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "thesis" / "config.yaml").read_text() == "mine"


def test_an_empty_folder_is_used(tmp_path):
    assert RunFolder.create(tmp_path, overwrite=False).path.is_dir()


def test_versions_are_those_installed(tmp_path):
    import torch

    versions = json.loads(finished(tmp_path / "run").versions_file.read_text())
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["seed"] == 7
    assert versions["scalablevit"]
    assert versions["python"].startswith("3.")


def test_lists_of_numbers_are_on_one_line_and_names_stay_as_they_are(tmp_path):
    content = {"confusion": [[3, 0], [1, 2]], "skipped": {"cut [1,  2].png": "is [ 3 ]"}, "none": []}
    write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == content
    assert "[ 3, 0 ]" in text


def metrics(epochs):
    return [
        EpochMetrics(
            epoch=epoch,
            train_loss=1.5 / epoch,
            val_loss=3.0 - epoch,
            val_score=50.0 + epoch,
            learning_rate=1e-3,
            seconds=12.25,
            images_per_second=700.5,
        )
        for epoch in range(1, epochs + 1)
    ]


def test_metrics_survive_their_file(tmp_path):
    folder, rows = finished(tmp_path / "run"), metrics(2)
    for row in rows:
        folder.append_metrics(row)
    lines = folder.metrics_file.read_text().splitlines()
    assert lines[0] == "epoch,train_loss,val_loss,val_score,learning_rate,seconds,images_per_second"
    assert lines[2] == "2,0.75,1,52,0.001,12.25,700.5"
    assert folder.read_metrics() == rows


def test_rows_are_written_whole_and_a_crash_meanwhile_loses_none(tmp_path, monkeypatch):
    folder, rows = finished(tmp_path / "run"), metrics(3)
    for row in rows:
        folder.append_metrics(row)

    def crash(*arguments):
        raise OSError("a crash")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", crash)
        with pytest.raises(OSError, match="a crash"):
            folder.write_metrics(rows[:1])
    assert folder.read_metrics() == rows
    assert not list(folder.path.glob(".*"))
    folder.write_metrics(rows[:2])
    assert folder.read_metrics() == rows[:2]
    folder.append_metrics(rows[2])
    assert folder.read_metrics() == rows
    folder.write_metrics(())
    assert not folder.metrics_file.exists()


def test_the_best_epoch_has_the_highest_score_and_of_equals_the_lowest_loss():
    def row(epoch, score, loss):
        measures = {"train_loss": 1.0, "learning_rate": 1e-3, "seconds": 1.0, "images_per_second": 1.0}
        return EpochMetrics(epoch=epoch, val_score=score, val_loss=loss, **measures)

    rows = [row(1, 80.0, 0.5), row(2, 90.0, 0.4), row(3, 90.0, 0.3), row(4, 90.0, 0.3), row(5, 70.0, 0.1)]
    assert best_row(rows).epoch == 3
    assert best_row(rows[:2]).epoch == 2
