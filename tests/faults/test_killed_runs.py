"""Runs that are killed or told to end, and what they come to when they go on: the same, bit for bit."""

import random
import signal
import time

import pytest

from scalablevit.classification.checkpoint_files import read_checkpoint
from tests.faults.command import STEPS, check_equal, resume, train

pytestmark = pytest.mark.slow

# Kills the process before a step counted from 1, wherever the last checkpoint is.
KILL = """
import os
from scalablevit.classification.task import ClassificationTask
training_step = ClassificationTask.training_step
def step(self, *arguments):
    if self.trainer.global_step + 1 == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return training_step(self, *arguments)
ClassificationTask.training_step = step
"""


def test_kill_9_in_the_middle_of_an_epoch(whole, images, folder):
    code, _, _ = train(images, folder.path, "--checkpoint-every-steps=3", patch=KILL.format(step=7)).end()
    assert code == -signal.SIGKILL
    assert read_checkpoint(folder.last_checkpoint)["global_step"] == 4  # of the epoch's end; three more were not there
    code, _, _ = resume(folder.path, patch=KILL.format(step=15)).end()
    assert code == -signal.SIGKILL
    code, printed, errors = resume(folder.path).end()
    assert (code, errors) == (0, "")
    assert "going on after step 12, which was after 3 epochs" in printed
    check_equal(whole, folder.path)


def test_kill_9_again_and_again_at_any_time(whole, images, folder):
    """State is saved after each step, so that many of the signals come while a checkpoint is written."""
    chance, kills = random.Random(7), 0
    command = train(images, folder.path)
    while kills < 6 and command.wait_for_checkpoints(folder, chance.randint(1, 2)):
        time.sleep(chance.uniform(0, 0.2))
        kills += command.kill()[0] == -signal.SIGKILL
        command = resume(folder.path)
    assert kills >= 3
    code, _, errors = command.end()
    assert (code, errors) == (0, "")
    check_equal(whole, folder.path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_to_the_whole_group_save_the_state(whole, images, folder, number):
    command = train(images, folder.path, "--checkpoint-every-steps=0", "--epochs=4")
    assert command.wait_for_checkpoints(folder, 1)
    code, _, errors = command.kill(number)
    lines = errors.splitlines()
    if number == signal.SIGINT:
        assert code == 130
        assert lines == [f"To go on: scalablevit train --resume {folder.path}", "scalablevit: interrupted"]
    else:
        assert code == 75
        (line,) = lines
        assert line.startswith(f"scalablevit: stopped by {number.name}, after step ")
        assert line.endswith(f"the state is saved; to go on: scalablevit train --resume {folder.path}")
    assert 4 <= read_checkpoint(folder.last_checkpoint)["global_step"] <= STEPS
    code, _, errors = resume(folder.path).end()
    assert (code, errors) == (0, "")
    check_equal(whole, folder.path)


@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_a_damaged_last_checkpoint_falls_back_and_says_so(whole, images, folder, harm):
    command = train(images, folder.path)
    assert command.wait_for_checkpoints(folder, 3)
    command.kill()
    content = bytearray(folder.last_checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    folder.last_checkpoint.write_bytes(content[: len(content) // 2] if harm == "cut" else content)
    code, _, errors = resume(folder.path).end()
    assert code == 0
    (line,) = errors.splitlines()
    assert line.startswith(f"{folder.last_checkpoint} is damaged (it")
    assert line.endswith(f"; going on from {folder.previous_checkpoint}, the one before")
    check_equal(whole, folder.path)
