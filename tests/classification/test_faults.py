"""What is said of what goes wrong, and steps whose numbers are not finite."""

import errno
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from scalablevit.classification.checkpoint_files import read_checkpoint
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.data import TrainingSet
from scalablevit.classification.devices import Processes
from scalablevit.classification.faults import TrainingFault, explain
from scalablevit.classification.non_finite import gradient_norm
from scalablevit.classification.run_folder import RunFolder
from scalablevit.classification.training import train
from tests.conftest import TINY

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]

CONFIG = TrainConfig(batch_size=64, size=(224, 160), workers=4)
MACHINE = [
    (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
        r"out of memory .*--grad-checkpointing true.*--batch-size \(now 64;.*--accumulate, now 1.*--size \(now 224 160",
    ),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"), r"\(CUDA out of memory\)"),
    (MemoryError(), r"out of memory \(MemoryError\)"),
    (
        RuntimeError("unable to mmap 6272 bytes from file <filename not specified>: Cannot allocate memory (12)"),
        r"out of memory \(unable to mmap 6272 bytes .*--batch-size \(now 64;",
    ),
    (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), r"out of memory \(\[Errno 12\] Cannot allocate memory\)"),
    (RuntimeError("std::bad_alloc"), r"out of memory \(std::bad_alloc\)"),
    (
        RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nDefaultCPUAllocator: can't allocate memory"),
        r"a process that reads images ran out of memory: lower --workers \(now 4\)",
    ),
    (
        RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. "),
        r"one of the 4 processes that read images \(pid 71\) was killed \(Killed\), .*memory ran out: lower --workers",
    ),
    (
        RuntimeError("DataLoader worker (pid 71) is killed by signal: Bus error. It is possible that dataloader's"),
        r"was killed \(Bus error\), usually because shared memory ran out: .*--shm-size",
    ),
    (
        RuntimeError("DataLoader worker (pid 71) exited unexpectedly with exit code 9. Details are lost"),
        r"\(pid 71\) ended with exit code 9: --workers 0 shows the error",
    ),
    (RuntimeError("DataLoader worker (pid(s) 71, 72) exited unexpectedly"), r"\(pid 71, 72\) ended: --workers 0"),
    (
        RuntimeError("unable to write to file </torch_71_9_0>: No space left on device (28)"),
        r"shared memory is full: lower --workers \(now 4\)",
    ),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), r"there is no room left to write to run .*: make room"),
    (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), r"there is no room left"),
    (Exception("I/O error: No space left on device (os error 28)"), r"there is no room left"),
]


@pytest.mark.parametrize(("error", "message"), MACHINE, ids=[message[:24] for _, message in MACHINE])
def test_faults_of_the_machine_say_what_to_do(error, message):
    fault = explain(error, CONFIG, Path("run"))
    assert isinstance(fault, TrainingFault)
    with pytest.raises(TrainingFault, match=message):
        raise fault
    assert str(fault).endswith("to go on: scalablevit train --resume run")
    assert str(explain(error, CONFIG, Path("run"), is_saved=False)).endswith("Nothing was saved yet")


def test_defects_are_not_explained_away():
    for error in (RuntimeError("shapes differ"), ValueError("x"), OSError(errno.ENOENT, "gone")):
        assert explain(error, CONFIG, Path("run")) is None


@pytest.fixture
def bad_images(monkeypatch):
    """Has some images come out of the augmentation as no numbers, by their index; all runs have them from then on."""
    bad = set()
    sample = TrainingSet.__getitem__

    def get(self, position):
        pixels, target = sample(self, position)
        return pixels.float() * (float("nan") if position[1] in bad else 1.0), target

    monkeypatch.setattr(TrainingSet, "__getitem__", get)
    return bad


def test_a_loss_that_is_no_number_ends_the_run_and_is_written_down(data, tmp_path, bad_images):
    bad_images.add(40)
    folder = RunFolder(tmp_path / "run")
    message = (
        r"the loss is nan in step \d, epoch 1, with 16 images, .*\.png and others .*non_finite"
        r".* a lower --learning-rate.*; to leave such steps out: scalablevit train --resume .*run --non-finite skip"
    )
    with pytest.raises(TrainingFault, match=message):
        train(data, folder.path, **TINY)
    (file,) = folder.non_finite.glob("*.json")
    facts = json.loads(file.read_text())
    assert (facts["loss"], facts["epoch"], facts["batch"]) == ("nan", 1, facts["step"])
    assert 40 in facts["indices"]
    assert len(facts["images"]) == 16
    assert all(Path(path).is_file() for path in facts["images"])
    state = read_checkpoint(folder.non_finite / facts["state"])
    assert state["global_step"] == facts["step"] - 1
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())
    result = train(out=folder.path, resume=True, non_finite="skip", workers=1)
    assert result.epochs == 2
    assert len(list(folder.non_finite.glob("*.json"))) == 2  # once in each epoch
    assert all(row.train_loss > 0 for row in folder.read_metrics())


def test_a_norm_that_is_told_is_that_of_all_pieces_where_fsdp_leaves_a_process_some():
    class WithAnother(Processes):
        def mean(self, tensor):
            return (tensor + 4.0**2) / 2

    both = WithAnother(per_node=2)
    for strategy, own, norm in (("fsdp", [3.0], 5.0), ("fsdp", [], 4.0), ("ddp", [3.0], 3.0)):
        task = SimpleNamespace(
            config=TrainConfig(strategy=strategy), processes=both, device=torch.device("cpu"), loss=None
        )
        parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in own]
        for parameter, gradient in zip(parameters, own, strict=True):
            parameter.grad = torch.tensor([gradient])
        optimizer = SimpleNamespace(param_groups=[{"params": parameters}])
        assert float(gradient_norm(optimizer, task)) == pytest.approx(norm)


def test_steps_are_left_out_up_to_a_bound_and_resuming_counts_on(data, tmp_path, bad_images):
    bad_images.update(range(48))
    options = {**TINY, "non_finite": "skip", "max_non_finite": 4, "checkpoint_every_steps": 1, "ema": 0.5}

    seen = []

    class Watching(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(float(pl_module.model.head.classifier.weight.detach().sum()))
            if trainer.global_step == 2:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Exception, match="stopped by SIGTERM, after step 3"):
        train(data, tmp_path / "run", **options, callbacks=[Watching()])
    with pytest.raises(
        TrainingFault, match=r"in step 5, epoch 2, .*4 steps before were left out, as many as --max-non"
    ):
        train(out=tmp_path / "run", resume=True, callbacks=[Watching()])
    assert len(seen) == 5
    assert len(set(seen)) == 1


def test_gradients_are_looked_at_too(data, tmp_path):
    class Spoiling(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            pl_module.model.head.classifier.bias.grad[0] = float("inf")

    with pytest.raises(TrainingFault, match=r"a gradient is no finite number \(their norm is inf\) in step 1, epoch 1"):
        train(data, tmp_path / "run", **TINY, callbacks=[Spoiling()])


def test_a_worker_that_dies_is_reported_with_its_cause(data, tmp_path, monkeypatch):
    def die(self, position):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(TrainingSet, "__getitem__", die)
    with pytest.raises(TrainingFault, match=r"one of the 1 processes that read images \(pid \d+\) was killed \(Killed"):
        train(data, tmp_path / "run", **TINY, workers=1)
    assert not (tmp_path / "run").exists()


def test_memory_that_runs_out_says_what_to_lower(data, tmp_path):
    class Greedy(pl.Callback):
        def on_train_batch_start(self, *arguments):
            torch.empty(1 << 60)

    with pytest.raises(TrainingFault, match=r"out of memory .*--batch-size \(now 16;.*Nothing was saved yet"):
        train(data, tmp_path / "run", **TINY, callbacks=[Greedy()])
