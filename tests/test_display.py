"""What goes to the terminal, and what does not."""

import os
import subprocess
import sys

import pytest

pty = pytest.importorskip("pty", reason="there are no pseudo-terminals here")

IMAGES = 3
COUNT = f"""
from scalablevit.display import count_along
for number in count_along(range({IMAGES}), {IMAGES}):
    print("line", number)
"""


def test_results_go_into_a_file_while_the_bar_is_on_the_terminal(tmp_path):
    ours, theirs = pty.openpty()
    with (tmp_path / "results").open("wb") as results:
        subprocess.run(
            [sys.executable, "-c", COUNT],
            stdout=results,
            stderr=theirs,
            check=True,
            env={**os.environ, "TERM": "xterm"},
        )
    os.close(theirs)
    shown = os.read(ours, 100_000)
    os.close(ours)
    assert (tmp_path / "results").read_text().splitlines() == [f"line {number}" for number in range(IMAGES)]
    assert b"images" in shown
    assert b"line" not in shown
