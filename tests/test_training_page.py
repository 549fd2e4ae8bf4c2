"""The page on training: what can be run within seconds is, and all else is at least understood by the command."""

import re
import sys

from scalablevit.classification.configuration import MAY_CHANGE
from scalablevit.cli import build_parser, in_order, known_options, with_underscores
from scalablevit.recipes import recipe_names
from tests.documents import blocks, read, run_console

PAGE = read("docs/training.md")
LINES = [line for _, block in blocks(PAGE, "console") for line in block.splitlines()]


def test_the_lines_that_are_quick_are_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = [line for line in LINES if not line.startswith("scalablevit train") or line.endswith("--dry-run")]
    assert len(quick) == 5
    said = "".join(run_console(line, lambda arguments: monkeypatch.setattr(sys, "argv", arguments)) for line in quick)
    assert "all is well" in said
    assert said.count("nothing was trained") == 3
    assert "40 epochs of 2 steps of 128 images" in said  # the recipe's batch, and the flag's epochs


def test_the_other_lines_are_understood():
    for line in LINES:
        program, *arguments = line.split()
        if program == "scalablevit" and arguments[0] == "train":
            build_parser().parse_args(in_order([with_underscores(argument) for argument in arguments]))


def test_flags_recipes_and_what_may_change_are_those_that_there_are():
    known = known_options(build_parser())
    for flag in re.findall(r"`(--(?!signal=)[a-z-]+)", PAGE):  # which is Slurm's
        assert with_underscores(flag) in known, flag
    named = re.findall(r"^\| `([a-z][a-z-]+)`", PAGE, flags=re.MULTILINE)
    assert {*named, "imagenet-base", "imagenet-large"} == set(recipe_names())
    paragraph = PAGE[PAGE.index("A run is resumed with its own options.") :].split("\n\n")[0]
    assert [with_underscores(flag)[2:] for flag in re.findall(r"`(--[a-z-]+)`", paragraph)] == list(MAY_CHANGE)
