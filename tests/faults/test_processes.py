"""Runs in two processes that are told to end, that fail, and that go on with another number of processes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from scalablevit.classification.checkpoint_files import damage, read_checkpoint
from scalablevit.classification.run_folder import RunFolder
from tests.conftest import write_images
from tests.faults.command import TIMEOUT_S, Command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up as Linux lists them"),
]

# Nothing that is drawn per process; 36 images make four steps in each epoch.
OPTIONS = [
    "--epochs=3", "--batch-size=9", "--seed=3", "--workers=0", "--accelerator=cpu", "--erasing=0.3", "--ema=0.9",
    "--learning-rate=0.002",
]  # fmt: skip
STEPS = 12
ENDS_WITHIN_S = 60  # on a machine whose one core two processes share

# What a process does before a step, from 1.
AT_STEP = """
import os, signal, time
from scalablevit.classification.task import ClassificationTask
training_step = ClassificationTask.training_step
def step(self, *arguments):
    if (self.trainer.global_step + 1, self.trainer.global_rank) in {where}:
        {what}
    return training_step(self, *arguments)
ClassificationTask.training_step = step
"""

# Image 20 has no numbers any more after augmentation.
SPOIL = """
from scalablevit.classification.data import TrainingSet
get = TrainingSet.__getitem__
def spoiled(self, position):
    pixels, target = get(self, position)
    return pixels.float() * (float("nan") if position[1] == 20 else 1.0), target
TrainingSet.__getitem__ = spoiled
"""

# PyTorch's FSDP looks for a GPU, and Lightning's strategy for one's name; the arithmetic works on a CPU. To save the
# state of an optimiser PyTorch gathers its averages in one buffer, one after the other, and takes each out by `.cpu()`.
# Of a GPU's buffer that is a copy; of a CPU's it is the buffer itself, and AdamW's first average would be saved with
# the numbers of the second. Without offloading it copies.
FSDP_ON_CPU = """
import torch, torch.distributed.fsdp as fsdp, pytorch_lightning.strategies as strategies
import torch.distributed.fsdp._optim_utils as optimizer_states
from scalablevit.classification import devices
devices.check_strategy = lambda config: None
make = fsdp.FullyShardedDataParallel.__init__
def on_cpu(self, module, **options):
    make(self, module, **{**options, "device_id": torch.device("cpu")})
fsdp.FullyShardedDataParallel.__init__ = on_cpu
strategies.FSDPStrategy = type("OnCPU", (strategies.FSDPStrategy,), {})
take_out = optimizer_states._unflatten_orig_param_states
def copied(information, states, name, shard_state, to_save, cpu_offload):
    take_out(information, states, name, shard_state, to_save, False)
optimizer_states._unflatten_orig_param_states = copied
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """36 images of 16x16 pixels to train on, and 21 to validate with."""
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", 12, seed=0, side=16)
    write_images(folder / "val", 7, seed=1, side=16)
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run in one process that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    code, _, errors = Command(data, "--out", out, *OPTIONS).end()
    assert (code, errors) == (0, "")
    return RunFolder(out)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def begin(data, folder, *more, patch=""):
    """A run in two processes."""
    return Command(data, "--out", folder.path, "--devices=2", *OPTIONS, *more, patch=patch)


def check_near(whole, folder):
    """That a run has learned what another has, to rounding."""
    first, second = (safetensors.torch.load_file(each.path / "model.safetensors") for each in (whole, folder))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    before, after = whole.read_metrics(), folder.read_metrics()
    assert [row.epoch for row in after] == [row.epoch for row in before]
    for name in ("train_loss", "val_loss", "val_score", "learning_rate"):
        expected = [getattr(row, name) for row in before]
        assert [getattr(row, name) for row in after] == pytest.approx(expected, rel=1e-4), name
    assert folder.read_evaluation()["images"] == 21
    assert not list(folder.path.rglob("*.partial"))


def children(command):
    """The other processes of a run."""
    found = Path(f"/proc/{command.process.pid}/task/{command.process.pid}/children").read_text().split()
    return [int(child) for child in found]


def await_end(process):
    """Until a process is no more."""
    ends = time.monotonic() + ENDS_WITHIN_S
    while Path(f"/proc/{process}").exists() and "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text():
        assert time.monotonic() < ends, "it hangs"
        time.sleep(0.1)


def test_torchrun_starts_the_same_run(whole, data, folder):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "scalablevit"]
    process = subprocess.Popen(
        [sys.executable, *launcher, "train", data, "--out", folder.path, *OPTIONS],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )  # fmt: skip
    try:
        printed, errors = process.communicate(timeout=TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.terminate()  # it ends its processes
            process.wait(TIMEOUT_S)
    assert process.returncode == 0, errors
    assert printed.count("Report: ") == 1
    check_near(whole, folder)
    assert folder.read_config()["devices"] is None  # so that it may go on in any number


@pytest.mark.parametrize("receiver", ["first", "other", "all"])
def test_a_signal_to_any_process_saves_once_and_ends_all(whole, data, folder, receiver):
    """And one process goes on where two have been."""
    what = "os.kill(os.getpid(), signal.SIGTERM)"
    where = {"first": [(6, 0)], "other": [(6, 1)], "all": [(6, 0), (6, 1)]}[receiver]
    command = begin(data, folder, patch=AT_STEP.format(where=where, what=what))
    code, _, errors = command.end()
    assert code == 75, errors
    (line,) = errors.splitlines()
    assert line.startswith("scalablevit: stopped by SIGTERM, after step 6 of epoch 2; the state is saved")
    assert read_checkpoint(folder.last_checkpoint)["global_step"] == 6
    assert damage(folder.last_checkpoint) == damage(folder.previous_checkpoint) == ""
    code, printed, errors = Command("--resume", folder.path, "--devices=1").end()
    assert (code, errors) == (0, "")
    assert "going on after step 6, which was after 1 epochs, 2 batches of the next" in printed
    check_near(whole, folder)


def test_two_processes_go_on_where_one_has_been(whole, data, folder):
    patch = AT_STEP.format(where=[(7, 0)], what="os.kill(os.getpid(), signal.SIGTERM)")
    code, _, _ = begin(data, folder, "--devices=1", patch=patch).end()
    assert code == 75
    code, printed, errors = Command("--resume", folder.path, "--devices=2").end()
    assert (code, errors) == (0, "")
    assert printed.count("going on after step 7") == 1
    check_near(whole, folder)


@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_end_when_one_fails_and_say_why(data, folder, rank):
    what = "raise ValueError('a defect')"
    begun = time.monotonic()
    command = begin(data, folder, patch=AT_STEP.format(where=[(6, rank)], what=what))
    assert command.wait_for_checkpoints(folder, 1)
    others = children(command)
    code, _, errors = command.end()
    assert code == (2 if rank == 0 else 3)  # as ValueErrors end the command; the other's loss is a fault
    assert time.monotonic() - begun < 2 * ENDS_WITHIN_S
    assert "a defect" in errors
    if rank == 1:
        assert "scalablevit: error: process 1: a defect" in errors.splitlines()
        assert "another process of the run has ended" in errors.splitlines()[-1]
    assert len(others) == 1
    await_end(others[0])
    assert damage(folder.last_checkpoint) == ""


def test_a_process_that_waits_for_one_that_is_gone_is_ended(data, folder):
    """As in a call on a GPU, which nothing but the end of the process ends."""
    what = "os._exit(9) if self.trainer.global_rank else time.sleep(600)"
    patch = AT_STEP.format(where=[(6, 0), (6, 1)], what=what)
    begun = time.monotonic()
    code, _, errors = begin(data, folder, patch=patch).end()
    assert code == 3
    assert errors.splitlines() == ["scalablevit: error: process 1 of 2 has ended with 9; it may have said why above"]
    assert time.monotonic() - begun < ENDS_WITHIN_S + 20


def test_no_process_outlives_the_first(data, folder):
    command = begin(data, folder, patch=AT_STEP.format(where=[(6, 1)], what="time.sleep(600)"))
    assert command.wait_for_checkpoints(folder, 1)
    (other,) = children(command)
    command.process.kill()
    command.end()
    await_end(other)


def test_numbers_that_are_none_end_all_or_are_left_out_by_all(data, folder):
    """Though the image is in the batches of one."""
    code, _, errors = begin(data, folder, patch=SPOIL).end()
    assert code == 3
    (line,) = errors.splitlines()
    assert "the loss is nan in step " in line
    (file,) = folder.non_finite.glob("*.json")
    facts = json.loads(file.read_text())
    assert 20 in facts["indices"]
    assert len(facts["images"]) == 9
    code, _, errors = Command("--resume", folder.path, "--non-finite=skip", patch=SPOIL).end()
    assert (code, errors) == (0, "")
    assert read_checkpoint(folder.last_checkpoint)["callbacks"]["NonFiniteGuard"]["skipped"] == 3
    assert [row.epoch for row in folder.read_metrics()] == [1, 2, 3]


def test_an_unreadable_image_counts_as_in_one_process(data, tmp_path):
    """Batches of two: the part of the process that cannot read its image is empty."""
    shutil.copytree(data, tmp_path / "data")
    bad = tmp_path / "data/train/dark/003.png"
    bad.write_bytes(bad.read_bytes()[:60])
    options = ["--batch-size=2", "--memory-mb=0", "--max-unreadable=0.1", "--epochs=1", "--optimizer=adamw"]
    folders = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    for each, count in zip(folders, (1, 2), strict=True):
        code, _, errors = begin(tmp_path / "data", each, *options, f"--devices={count}").end()
        assert (code, errors) == (0, "")
        assert list(each.read_skipped()) == [str(bad)]
    check_near(*folders)


def test_fsdp_learns_what_one_process_learns_and_goes_on(data, folder, tmp_path):
    """Decay and clipping included, though its processes have parameters without shapes and pieces of gradients.

    It goes on in as many processes as before, in more, and in one.
    """
    options = ["--optimizer=adamw", "--ema=0", "--weight-decay=0.5", "--clip=0.5", "--epochs=2"]
    one = RunFolder(tmp_path / "one")
    code, _, errors = begin(data, one, *options, "--devices=1").end()
    assert (code, errors) == (0, "")
    stop = AT_STEP.format(where=[(6, 1)], what="os.kill(os.getpid(), signal.SIGTERM)")
    code, printed, errors = begin(data, folder, *options, "--strategy=fsdp", patch=FSDP_ON_CPU + stop).end()
    assert code == 75, errors
    assert "with 1.17 M parameters on 2 devices" in printed
    code, _, errors = Command("--resume", folder.path, "--strategy=ddp").end()
    assert code == 2
    assert "fsdp keeps the state of the optimiser in another order: leave --strategy out" in errors
    for count in (2, 3, 1):
        other = RunFolder(shutil.copytree(folder.path, tmp_path / f"on {count}"))
        code, printed, errors = Command("--resume", other.path, f"--devices={count}", patch=FSDP_ON_CPU).end()
        assert (code, errors) == (0, "")
        assert "going on after step 6" in printed
        check_near(one, other)
