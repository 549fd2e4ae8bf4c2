"""Runs that are interrupted, and go on."""

import errno
import logging
import os
import shutil
import signal

import pytest
import pytorch_lightning as pl
import safetensors.torch
import torch

from scalablevit.classification import checkpoint_files
from scalablevit.classification.checkpoint_files import read_checkpoint
from scalablevit.classification.checkpoints import find_saved_state
from scalablevit.classification.faults import TrainingFault
from scalablevit.classification.run_folder import RunFolder
from scalablevit.classification.stopping import StoppedBySignal
from scalablevit.classification.training import train
from tests.conftest import TINY

OPTIONS = {**TINY, "epochs": 4, "drop_path": 0.2, "mixup": 0.4, "cutmix": 0.4, "erasing": 0.3, "ema": 0.8}

# Python warns of forks in a process with threads, which is what a loader's workers are, and PyTorch of more of them
# than there are cores.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


class Signalling(pl.Callback):
    """Sends this process a signal after a batch of three, both from 1, or in the validation after the third."""

    def __init__(self, epoch, batch=2, number=signal.SIGINT):
        self.epoch = epoch
        self.batch = batch
        self.number = number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch + 1, batch_idx + 1) == (self.epoch, self.batch):
            signal.raise_signal(self.number)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if (trainer.current_epoch + 1, 4) == (self.epoch, self.batch):
            signal.raise_signal(self.number)


class Failing(pl.Callback):
    """Ends a run as a crash would, before a step counted from 1."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step + 1 == self.step:
            raise RuntimeError("a defect")


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C as it is in a terminal; a job in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("whole") / "run", **OPTIONS)


def check_equal(whole, result):
    """That a run that was continued has come to what one that was not has come to."""
    first, second = (safetensors.torch.load_file(each.run / "model.safetensors") for each in (whole, result))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    before, after = (RunFolder(each.run).read_metrics() for each in (whole, result))
    assert [row.epoch for row in after] == [1, 2, 3, 4]
    for name in ("train_loss", "val_loss", "val_score", "learning_rate"):
        assert [getattr(row, name) for row in after] == [getattr(row, name) for row in before]
    assert result.best_epoch == whole.best_epoch
    assert result.scores.top1 == whole.scores.top1
    first, second = (read_checkpoint(RunFolder(each.run).last_checkpoint) for each in (whole, result))
    assert same_content(first["optimizer_states"], second["optimizer_states"])
    assert same_content(first["state_dict"], second["state_dict"])
    assert same_content(first["lr_schedulers"], second["lr_schedulers"])
    assert first["global_step"] == second["global_step"]


def same_content(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_content(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same_content, first, second))
    return first == second


@pytest.mark.parametrize(("epoch", "batch"), [(1, 1), (3, 3), (2, 4)])
def test_what_was_interrupted_ends_as_if_it_had_not_been(whole, data, tmp_path, epoch, batch):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", **OPTIONS, callbacks=[Signalling(epoch, batch)])
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "run" / "model.safetensors").exists()
    state = find_saved_state(RunFolder(tmp_path / "run"))
    assert (state.epoch, state.batches) == (epoch - 1, min(batch, 3))  # after the step that it was in
    check_equal(whole, train(out=tmp_path / "run", resume=True))


def test_a_run_goes_on_within_an_epoch_whatever_the_workers(whole, data, tmp_path):
    options = {**OPTIONS, "checkpoint_every_steps": 2, "workers": 2}
    with pytest.raises(RuntimeError, match="a defect"):
        train(data, tmp_path / "run", **options, callbacks=[Failing(2)])
    assert not (tmp_path / "run").exists()  # nothing was saved, so that nothing is left
    with pytest.raises(RuntimeError, match="a defect"):
        train(data, tmp_path / "run", **options, callbacks=[Failing(3)])
    assert read_checkpoint(RunFolder(tmp_path / "run").last_checkpoint)["global_step"] == 2
    with pytest.raises(RuntimeError, match="a defect"):
        train(out=tmp_path / "run", resume=True, callbacks=[Failing(9)])
    assert read_checkpoint(RunFolder(tmp_path / "run").last_checkpoint)["global_step"] == 8
    check_equal(whole, train(out=tmp_path / "run", resume=True, workers=1))


def test_gradients_that_are_added_up_and_computed_again_do_not_depend_on_interruptions(data, tmp_path):
    options = {**OPTIONS, "accumulate": 2, "optimizer": "adamw", "checkpoint_every_steps": 1}
    whole = train(data, tmp_path / "whole", **options)
    assert read_checkpoint(RunFolder(whole.run).last_checkpoint)["global_step"] == 8  # two steps of three batches
    with pytest.raises(RuntimeError, match="a defect"):
        train(data, tmp_path / "run", **options, callbacks=[Failing(4)])
    state = find_saved_state(RunFolder(tmp_path / "run"))
    assert (state.epoch, state.batches) == (1, 2)
    check_equal(whole, train(out=tmp_path / "run", resume=True, grad_checkpointing=True))
    assert RunFolder(tmp_path / "run").read_config()["grad_checkpointing"] is True


def test_a_frozen_network_stays_as_it_is_outside_training_when_a_run_goes_on(run, data, tmp_path):
    """Lightning does not begin the epoch anew that a run goes on within."""
    options = {**OPTIONS, "weights": str(run.run), "freeze_backbone": True, "drop_path": 0.5}
    whole = train(data, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", **options, callbacks=[Signalling(2)])
    check_equal(whole, train(out=tmp_path / "run", resume=True))


def test_the_speed_of_an_epoch_that_is_gone_on_with_is_that_of_its_rest(data, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(data, folder.path, **OPTIONS, callbacks=[Signalling(4)])
    folder.input_rate_file.unlink()
    train(out=folder.path, resume=True)
    # One step of 16 images; counted from when the machine was started it would be next to nothing.
    assert folder.read_input_rate()["trains"] > 4


@pytest.mark.parametrize(("minutes", "step"), [(1e-9, 2), (60.0, None)])
def test_the_state_is_saved_after_so_many_minutes(data, tmp_path, minutes, step):
    folder = RunFolder(tmp_path / "run")
    options = {**OPTIONS, "checkpoint_every_minutes": minutes}
    with pytest.raises(RuntimeError, match="a defect"):
        train(data, folder.path, **options, callbacks=[Failing(3)])
    assert folder.last_checkpoint.exists() == (step is not None)
    if step is not None:
        assert read_checkpoint(folder.last_checkpoint)["global_step"] == step


PARTS = {
    "muon": {"layer_decay": 0.8, "balance": "sampling", "rand_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4},
    "sgd": {
        "learning_rate": 0.01,
        "first_learning_rate": 0.1,
        "balance": "weights",
        "erasing_mode": "pixel",
        "keep": "last",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_every_part_goes_on_as_if_nothing_had_been(data, tmp_path, optimizer):
    options = {**OPTIONS, "cutmix_share": 0.3, "mix_probability": 0.7, "optimizer": optimizer, **PARTS[optimizer]}
    whole = train(data, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", **options, callbacks=[Signalling(3, 2)])
    check_equal(whole, train(out=tmp_path / "run", resume=True))
    assert whole.best_epoch == 4 or options.get("keep") != "last"


@pytest.mark.slow
def test_patience_is_over_after_the_same_epoch_whatever_the_interruptions(data, tmp_path):
    # Of weights that do not move, the first epoch is the best.
    options = {**OPTIONS, "ema": 0.0, "learning_rate": 1e-30, "weight_decay": 0.0, "epochs": 9, "patience": 2}
    result = train(data, tmp_path / "whole", **options)
    assert (result.epochs, result.best_epoch, result.ended_early) == (3, 1, True)
    page = (result.run / "report" / "index.html").read_text()
    assert "3 epochs of 9, ended early by a patience of 2" in page
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", **options, callbacks=[Signalling(3)])
    assert train(out=tmp_path / "run", resume=True).epochs == 3
    assert train(out=tmp_path / "run", resume=True).epochs == 3  # and stays so


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_of_batch_systems_save_the_state_and_say_so(data, tmp_path, number):
    handler = signal.getsignal(number)
    message = rf"stopped by {number.name}, after step 5 of epoch 2; the state is saved; to go on: .* --resume .*run"
    with pytest.raises(StoppedBySignal, match=message):
        train(data, tmp_path / "run", **OPTIONS, callbacks=[Signalling(2, 2, number)])
    assert signal.getsignal(number) is handler
    assert find_saved_state(RunFolder(tmp_path / "run")).batches == 2


@pytest.fixture
def stopped(data, tmp_path):
    """A run that was stopped after its fifth step, with the state after the third as the one before."""
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "stopped", **OPTIONS, callbacks=[Signalling(2, 2)])
    return RunFolder(tmp_path / "stopped")


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(whole, stopped, caplog):
    stopped.last_checkpoint.write_bytes(stopped.last_checkpoint.read_bytes()[:-1000])
    with caplog.at_level(logging.WARNING):
        result = train(out=stopped.path, resume=True)
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"{stopped.last_checkpoint} is damaged (it" in message
    assert message.endswith(f"going on from {stopped.previous_checkpoint}, the one before")
    check_equal(whole, result)


def test_a_lost_best_checkpoint_is_made_again_or_told_of(whole, stopped, caplog):
    best = read_checkpoint(stopped.best_checkpoint)
    stopped.last_checkpoint.unlink()  # the state of the first epoch's end has the same weights
    stopped.best_checkpoint.write_bytes(b"")
    with pytest.raises(KeyboardInterrupt):
        train(out=stopped.path, resume=True, callbacks=[Signalling(2, 1)])
    assert same_content(read_checkpoint(stopped.best_checkpoint)["state_dict"], best["state_dict"])
    stopped.best_checkpoint.unlink()
    result = train(out=stopped.path, resume=True)
    assert "the weights of the best epoch so far, 1, are lost" in caplog.text
    assert result.best_epoch == whole.best_epoch  # as it was a later one


def test_a_full_disk_leaves_what_was_saved(whole, data, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    synchronise = os.fsync

    def fill(descriptor):
        if folder.last_checkpoint.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synchronise(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_files.os, "fsync", fill)
        with pytest.raises(TrainingFault, match=r"no room left .*No space left on device.*to go on: .*--resume"):
            train(data, folder.path, **OPTIONS, checkpoint_every_steps=2)
    assert {file.name for file in folder.checkpoints.iterdir()} == {"last.ckpt"}
    assert read_checkpoint(folder.last_checkpoint)["global_step"] == 2
    check_equal(whole, train(out=folder.path, resume=True))


def test_a_drawn_split_stays_as_it_was(data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(data / "train", tmp_path / "run", **OPTIONS, callbacks=[Signalling(2)])
    split = RunFolder(tmp_path / "run").split_file.read_text()
    assert split.count(",val\n") == 9  # a fifth of 16 is 3, of three classes
    result = train(out=tmp_path / "run", resume=True)
    assert RunFolder(result.run).split_file.read_text() == split
    assert result.scores.images == 9


def test_a_run_that_was_moved_keeps_its_best_epoch(whole, data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", **OPTIONS, callbacks=[Signalling(4)])
    (tmp_path / "run").rename(tmp_path / "moved")
    result = train(out=tmp_path / "moved", resume=True)
    check_equal(whole, result)


def test_other_images_and_damaged_files_are_refused(data, tmp_path):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(data, tmp_path / "data")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "data", folder.path, **OPTIONS, callbacks=[Signalling(2)])
    shutil.copy(tmp_path / "data/train/dark/000.png", tmp_path / "data/train/dark/more.png")
    with pytest.raises(ValueError, match=r"the images are not those that the run in .* began with"):
        train(out=folder.path, resume=True)
    (tmp_path / "data/train/dark/more.png").unlink()
    for file in (folder.last_checkpoint, folder.previous_checkpoint):
        file.write_bytes(file.read_bytes()[:1000])
    both = r"last\.ckpt is damaged .*previous\.ckpt is damaged .*nothing to go on from; start .* with --overwrite"
    with pytest.raises(ValueError, match=both):
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
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(data, folder.path, **OPTIONS, callbacks=[Signalling(1)])
    with pytest.raises(RuntimeError, match="a defect"):
        train(out=folder.path, resume=True, callbacks=[Failing(3)])
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
        ValueError,
        match=r"epochs is 9, but the run in .* has 4; seed is 1, .*: a run is resumed with its own options, but",
    ):
        train(out=whole.run, resume=True, epochs=9, seed=1, workers=2)
    with pytest.raises(ValueError, match="nowhere is not a run folder"):
        train(out=tmp_path / "nowhere", resume=True)
