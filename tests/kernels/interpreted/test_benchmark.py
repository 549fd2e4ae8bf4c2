"""benchmarks/gpu_kernels.py as far as it goes without a GPU: everything but the clock."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu_kernels.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_kernels", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_kernels", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    return module


def test_rows_hold_right_results_and_the_bytes_of_a_hand_count(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "milliseconds", lambda *_: {"PyTorch": 3.0, "kernel": 2.0})
    windows, lists = (
        script.Windows(name="S4 IWSA", heads=1, side=7),
        script.Lists(name="S4 SSA", heads=1, side=7, key_width=40),
    )
    rows = [row for case in (windows, lists) for row in script.measure(case, 1, "bf16")]
    for row in rows:
        script.print_row(row)
    assert [row["right"] for row in rows] == [True] * 4
    assert "WRONG" not in capsys.readouterr().out
    parameters = 32 * 9 + 32
    forward, backward = 49 * (64 + 32) + parameters + 49 * 32, 2 * (49 * (64 + 32) + parameters) + 49 * 32
    assert [row["bytes"] for row in rows[:2]] == [2 * forward, 2 * (forward + backward)]
    assert rows[2]["bytes"] == 2 * 49 * (40 + 40 + 32 + 32)
    assert rows[0]["kernel bytes per second"] == pytest.approx(2 * forward / 2e-3)
    assert rows[0]["ratio"] == 1.5


def test_wrong_results_are_seen(script, monkeypatch):
    from scalablevit.kernels import window_attention as launcher

    launch = launcher.attend_in_windows
    monkeypatch.setattr(launcher, "attend_in_windows", lambda *arguments: launch(*arguments) * 1.1)
    monkeypatch.setattr(script, "milliseconds", lambda *_: {"PyTorch": 3.0, "kernel": 2.0})
    rows = list(script.measure(script.Windows(name="S4 IWSA", heads=1, side=7), 1, "fp32"))
    assert [row["right"] for row in rows] == [False, False]


def test_what_no_kernel_takes_has_no_row(script):
    assert list(script.measure(script.Lists(name="S4 SSA", heads=1, side=7, key_width=40), 1, "fp32")) == []


def test_without_a_gpu_one_line_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "gpu_kernels.py: needs a CUDA GPU, and torch.cuda.is_available() is false\n"
    assert done.stdout == ""
