"""The page on prediction: its blocks do what they say."""

import sys

import pytest

from scalablevit.sample import sample_folder
from tests.documents import blocks, printed, promised, read, run_console

PAGE = read("docs/predict.md")


@pytest.fixture
def folder(run, tmp_path, monkeypatch):
    """A working directory with the images and the run that the page names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clothes").symlink_to(sample_folder() / "val")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "clothes").symlink_to(run.run)
    return tmp_path


def test_the_python_blocks_print_what_they_promise(folder):
    names = {}
    for _, block in blocks(PAGE, "python"):
        assert printed(block, names) == promised(block)


def test_the_commands_run(folder, monkeypatch):
    ((_, block),) = blocks(PAGE, "console")
    lines = run_console(block, lambda arguments: monkeypatch.setattr(sys, "argv", arguments)).splitlines()
    assert len(lines) > 100
    assert lines[0].startswith("clothes/bag/00018.png: ")
    assert lines[-1].startswith('{"path": "clothes/trouser/000')
