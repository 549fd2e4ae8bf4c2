"""The page for the first model: each of its blocks is executed, in its order."""

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from scalablevit.cli import main as scalablevit
from scalablevit.sample.__main__ import main as sample

PAGE = (Path(__file__).parent.parent / "docs" / "first-model.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(console|python)\n(.*?)```", PAGE, flags=re.DOTALL)


def run(line, monkeypatch):
    program, *arguments = shlex.split(line)
    if program == "scalablevit":
        return scalablevit(arguments)
    assert (program, *arguments[:2]) == ("python", "-m", "scalablevit.sample")
    monkeypatch.setattr(sys, "argv", ["sample", *arguments[2:]])
    return sample()


def test_each_block_does_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = {}
    for kind, block in BLOCKS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if kind == "python":
                exec(compile(block, "first-model.md", "exec"), {})
            else:
                for line in block.splitlines():
                    assert not run(line, monkeypatch), line
        output[block] = printed.getvalue()
        if kind == "python":
            assert printed.getvalue().splitlines() == re.findall(r"# (.*)$", block, flags=re.MULTILINE)
    said = "".join(output.values())
    assert "all is well" in said
    assert "epochs 100: 320 images to train on" in said
    assert "nothing was trained" in said
    assert "epoch 8/8  loss" in said
    assert said.count('{"path": "clothes/') > 5
    for name in ("report/index.html", "evaluate.json", "split.csv"):
        assert (tmp_path / "runs" / "clothes" / name).is_file()


def test_the_page_names_flags_that_exist():
    from scalablevit.cli import build_parser, known_options, with_underscores

    known = known_options(build_parser())
    for flag in re.findall(r"`(--[a-z-]+)", PAGE):
        assert with_underscores(flag) in known, flag


@pytest.mark.parametrize("arguments", [["--copy", "."], ["--count", "0"]], ids=" ".join)
def test_the_sample_says_what_is_wrong(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sample", *arguments])
    with pytest.raises(SystemExit) as caught:
        sample()
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err
