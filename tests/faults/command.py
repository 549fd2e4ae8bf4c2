"""The real command in a process of its own, which is killed, signalled and starved."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import safetensors.torch
import torch

from scalablevit.classification.run_folder import RunFolder

# Everything that is random, and an average; 36 images make four steps in each epoch.
OPTIONS = {
    "epochs": 4,
    "batch_size": 8,
    "seed": 3,
    "workers": 2,
    "accelerator": "cpu",
    "random_crop": "resize",
    "erasing": 0.3,
    "mixup": 0.4,
    "cutmix": 0.4,
    "drop_path": 0.2,
    "ema": 0.9,
    "checkpoint_every_steps": 1,
}
STEPS = 16
TIMEOUT_S = 300

# Ctrl-C as in a terminal; where tests run in the background it is ignored.
START = """
import signal, sys, warnings
signal.signal(signal.SIGINT, signal.default_int_handler)
warnings.filterwarnings("ignore", "This DataLoader will create")
{patch}
from scalablevit.cli import main
sys.exit(main())
"""


class Command:
    """``scalablevit train`` in the background, in a group of processes of its own.

    Args:
        arguments: Those of the command.
        patch: Code that runs before it.
    """

    def __init__(self, *arguments, patch=""):
        self.process = subprocess.Popen(
            [sys.executable, "-c", START.format(patch=patch), "train", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def wait_for_checkpoints(self, folder, count):
        """Until so many have been written since the call; False if the run came to its end before."""
        last, ends = _time(folder.last_checkpoint), time.monotonic() + TIMEOUT_S
        while count and self.process.poll() is None:
            assert time.monotonic() < ends
            now = _time(folder.last_checkpoint)
            if now != last and now is not None:
                last, count = now, count - 1
            time.sleep(0.002)
        return count == 0

    def kill(self, number=signal.SIGKILL):
        """Sends a signal to the whole group, as batch systems do, and waits for the end."""
        os.killpg(self.process.pid, number)
        return self.end()

    def end(self):
        """The exit code, and what was printed and complained of."""
        try:
            printed, errors = self.process.communicate(timeout=TIMEOUT_S)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.returncode, printed, errors

    def workers(self):
        """The processes that read images."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        forked = [child for child in children if "from scalablevit" in Path(f"/proc/{child}/cmdline").read_text()]
        return [int(child) for child in forked]


def _time(file):
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:  # not there yet, or between two names
        return None


def train(data, out, *more, patch=""):
    """Begins a run."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    return Command(data, "--out", out, *options, *more, patch=patch)


def resume(out, *more, patch=""):
    """Goes on with it."""
    return Command("--resume", out, *more, patch=patch)


def check_equal(whole, out):
    """That a run has come to the same as one that nothing happened to, and what is left of its way is in order."""
    first, second = (safetensors.torch.load_file(each / "model.safetensors") for each in (whole, out))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    before, after = (RunFolder(each).read_metrics() for each in (whole, out))
    assert [row.epoch for row in after] == [1, 2, 3, 4]
    for name in ("train_loss", "val_loss", "val_score", "learning_rate"):
        assert [getattr(row, name) for row in after] == [getattr(row, name) for row in before], name
    assert not list(out.rglob("*.partial"))
