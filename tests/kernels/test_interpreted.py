"""Runs the tests of the kernels in Triton's interpreter, which is a matter of a whole process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What loops as often as a kernel computes: with today's NumPy the interpreter of triton 3.6 fails at that.
LOOPING = ("test_benchmark", "test_short_attention")


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parent / "interpreted").glob("test_*.py")), ids=lambda f: f.stem
)
def test_in_the_interpreter(file):
    triton = pytest.importorskip("triton")
    if file.stem in LOOPING and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip(f"the interpreter of triton {triton.__version__} is too old for loops of computed length")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
