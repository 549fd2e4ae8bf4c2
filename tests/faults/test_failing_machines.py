"""Disks that are full, memory that is out, workers that die, and numbers that are none."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from scalablevit.classification.checkpoint_files import damage
from tests.faults.command import check_equal, resume, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits of another process can be set on Linux alone"),
]

# Image 20 has no numbers any more after augmentation.
SPOIL = """
from scalablevit.classification.data import TrainingSet
get = TrainingSet.__getitem__
def spoiled(self, position):
    pixels, target = get(self, position)
    return pixels.float() * (float("nan") if position[1] == 20 else 1.0), target
TrainingSet.__getitem__ = spoiled
"""


def failed(command):
    """The one line that a run ends with that a fault has stopped."""
    code, _, errors = command.end()
    assert code == 3, errors
    line = errors.splitlines()[-1]
    assert line.startswith("scalablevit: error: ")
    return line


def test_a_full_disk_stops_the_run_and_leaves_what_was_saved(whole, images, folder):
    import resource

    command = train(images, folder.path)
    assert command.wait_for_checkpoints(folder, 2)
    resource.prlimit(command.process.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    line = failed(command)
    assert f"there is no room left to write to {folder.path}" in line
    assert line.endswith(f"What was saved before is whole; to go on: scalablevit train --resume {folder.path}")
    assert damage(folder.last_checkpoint) == damage(folder.previous_checkpoint) == ""
    assert not list(folder.path.rglob("*.partial"))
    code, _, errors = resume(folder.path).end()
    assert (code, errors) == (0, "")
    check_equal(whole, folder.path)


def test_memory_that_runs_out_says_what_to_lower(whole, images, folder):
    import resource

    command = train(images, folder.path)
    assert command.wait_for_checkpoints(folder, 1)
    taken = int(Path(f"/proc/{command.process.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.prlimit(command.process.pid, resource.RLIMIT_AS, (taken, resource.RLIM_INFINITY))
    line = failed(command)
    for part in (
        "out of memory",
        "--batch-size (now 8",
        "--size (now 28 28)",
        "--accumulate",
        "--grad-checkpointing true",
    ):
        assert part in line
    code, _, errors = resume(folder.path, "--grad-checkpointing", "true").end()
    assert (code, errors) == (0, "")
    check_equal(whole, folder.path)


def test_a_worker_that_is_killed_is_reported_with_its_cause(whole, images, folder):
    command = train(images, folder.path)
    assert command.wait_for_checkpoints(folder, 1)
    worker = command.workers()[0]
    os.kill(worker, signal.SIGKILL)
    line = failed(command)
    assert f"one of the 2 processes that read images (pid {worker}) was killed (Killed), usually by the system" in line
    code, _, errors = resume(folder.path, "--workers", "0").end()
    assert (code, errors) == (0, "")
    check_equal(whole, folder.path)


def test_numbers_that_are_none_end_the_run_or_are_left_out(images, folder):
    line = failed(train(images, folder.path, "--workers=0", patch=SPOIL))
    assert "the loss is nan in step " in line
    assert line.endswith(f"to leave such steps out: scalablevit train --resume {folder.path} --non-finite skip")
    (file,) = folder.non_finite.glob("*.json")
    facts = json.loads(file.read_text())
    assert 20 in facts["indices"]
    assert len(facts["images"]) == 8
    assert damage(folder.non_finite / facts["state"]) == ""
    skip = ("--non-finite=skip", "--max-non-finite=2")
    line = failed(resume(folder.path, *skip, patch=SPOIL))
    assert "2 steps before were left out, as many as --max-non-finite allows" in line
    code, _, errors = resume(folder.path, "--max-non-finite=9", patch=SPOIL).end()
    assert (code, errors) == (0, "")
    assert 2 < len(list(folder.non_finite.glob("*.json"))) <= 4
    assert [row.epoch for row in folder.read_metrics()] == [1, 2, 3, 4]
