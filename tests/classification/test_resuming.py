"""Runs that are interrupted, and go on."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import pytorch_lightning as pl
import safetensors.torch
import torch

from scalablevit.classification.fitting import read_checkpoint
from scalablevit.classification.run_folder import RunFolder
from scalablevit.classification.training import train
from tests.conftest import TINY

OPTIONS = {**TINY, "epochs": 4, "drop_path": 0.2, "mixup": 0.4, "ema": 0.8}


class Interrupting(pl.Callback):
    """Presses Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch + 1 == self.epoch and batch_idx == 1:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C as it is in a terminal; a job in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("whole") / "run", **OPTIONS)


@pytest.mark.parametrize("epoch", [1, 3])
def test_what_was_interrupted_ends_as_if_it_had_not_been(whole, data, tmp_path, epoch):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", **OPTIONS, callbacks=[Interrupting(epoch)])
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "run" / "model.safetensors").exists()
    result = train(out=tmp_path / "run", resume=True)
    first, second = (safetensors.torch.load_file(each.run / "model.safetensors") for each in (whole, result))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert result.scores.top1 == whole.scores.top1
    rows = RunFolder(result.run).read_metrics()
    assert [row.epoch for row in rows] == [1, 2, 3, 4]
    before = RunFolder(whole.run).read_metrics()
    assert [row.train_loss for row in rows] == [row.train_loss for row in before]
    assert result.best_epoch == whole.best_epoch


def test_a_drawn_split_stays_as_it_was(data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(data / "train", tmp_path / "run", **OPTIONS, callbacks=[Interrupting(2)])
    split = RunFolder(tmp_path / "run").split_file.read_text()
    assert split.count(",val\n") == 9  # a fifth of 16 is 3, of three classes
    result = train(out=tmp_path / "run", resume=True)
    assert RunFolder(result.run).split_file.read_text() == split
    assert result.scores.images == 9


def test_the_last_checkpoint_is_of_the_last_epoch(whole, data, tmp_path):
    assert read_checkpoint(RunFolder(whole.run).last_checkpoint)["epoch"] + 1 == 4
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", **OPTIONS, callbacks=[Interrupting(4)])
    assert read_checkpoint(RunFolder(tmp_path / "run").last_checkpoint)["epoch"] + 1 == 3


def test_a_run_that_was_moved_keeps_its_best_epoch(whole, data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", **OPTIONS, callbacks=[Interrupting(4)])
    (tmp_path / "run").rename(tmp_path / "moved")
    result = train(out=tmp_path / "moved", resume=True)
    first, second = (safetensors.torch.load_file(each.run / "model.safetensors") for each in (whole, result))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_other_images_and_damaged_files_are_refused(data, tmp_path):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(data, tmp_path / "data")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "data", folder.path, **OPTIONS, callbacks=[Interrupting(2)])
    shutil.copy(tmp_path / "data/train/dark/000.png", tmp_path / "data/train/dark/more.png")
    with pytest.raises(ValueError, match=r"the images are not those that the run in .* began with"):
        train(out=folder.path, resume=True)
    (tmp_path / "data/train/dark/more.png").unlink()
    folder.last_checkpoint.write_bytes(folder.last_checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged .*: start the run again with --overwrite"):
        train(out=folder.path, resume=True)
    folder.config_file.write_text(folder.config_file.read_text() + "colour: red\n")
    with pytest.raises(ValueError, match="has the option colour, which there is not"):
        train(out=folder.path, resume=True)


def test_a_run_that_cannot_begin_leaves_nothing_and_brings_back_what_was_there(data, tmp_path):
    before = train(data, tmp_path / "run", **{**OPTIONS, "epochs": 1})
    with pytest.raises(ValueError, match="abacus"):
        train(data, tmp_path / "run", **{**OPTIONS, "accelerator": "abacus"}, overwrite=True)
    assert RunFolder(before.run).read_metrics()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_name_that_cannot_be_written_down_is_named_and_costs_nothing(data, own_run, tmp_path):
    shutil.copytree(data / "train", tmp_path / "images")
    (tmp_path / "images/dark/000.png").rename(tmp_path / os.fsdecode(b"images/dark/\xff.png"))
    before = sorted(own_run.rglob("*"))
    with pytest.raises(ValueError, match=r"dark/\\udcff\.png' is not valid UTF-8, .*split\.csv .*: rename it"):
        train(tmp_path / "images", own_run, **OPTIONS, overwrite=True)
    assert sorted(own_run.rglob("*")) == before
    with pytest.raises(ValueError, match="rename it"):
        train(tmp_path / "images", tmp_path / "new", **OPTIONS)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "own"}


def test_a_failure_while_resuming_never_removes_the_run(data, tmp_path):
    class Failing(pl.Callback):
        def on_train_batch_end(self, *arguments):
            raise RuntimeError("a defect")

    folder = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(data, folder.path, **OPTIONS, callbacks=[Interrupting(1)])
    with pytest.raises(RuntimeError, match="a defect"):
        train(out=folder.path, resume=True, callbacks=[Failing()])
    assert folder.is_run_folder()


def test_a_finished_run_stays_what_it_is(whole):
    before = safetensors.torch.load_file(whole.run / "model.safetensors")
    result = train(out=whole.run, resume=True)
    after = safetensors.torch.load_file(result.run / "model.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert result.epochs == 4


def test_other_data_and_options_are_refused(whole, data, tmp_path):
    with pytest.raises(ValueError, match=r"but the run in .* is on .*: leave data out"):
        train(data / "train", whole.run, resume=True)
    with pytest.raises(
        ValueError, match=r"epochs is 9, but the run in .* has 4: a run is resumed with its own options"
    ):
        train(out=whole.run, resume=True, epochs=9)
    with pytest.raises(ValueError, match="nowhere is not a run folder"):
        train(out=tmp_path / "nowhere", resume=True)


@pytest.mark.slow
def test_ctrl_c_on_the_command_line(data, tmp_path):
    call = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " from scalablevit.cli import main; raise SystemExit(main())"
    )
    command = [sys.executable, "-c", call, "train", str(data), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--epochs=500", "--batch-size=16"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    for _ in range(600):
        if folder.last_checkpoint.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = [line for line in errors.splitlines() if line.strip()]
    assert lines == [f"To go on: scalablevit train --resume --out {tmp_path / 'run'}", "scalablevit: interrupted"]
