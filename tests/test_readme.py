"""The README's blocks run and print what they say."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n", 1)[0])
def test_a_block_prints_what_its_comments_say(block):
    promised = []
    lines = block.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("print("):
            following = lines[number + 1] if number + 1 < len(lines) else ""
            same_line = re.search(r"\)\s+# (.*)$", line)
            promised.append(same_line.group(1) if same_line else following.removeprefix("# "))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "README.md", "exec"), {})
    assert printed.getvalue().splitlines() == promised


def test_there_are_blocks():
    assert len(BLOCKS) == 3


def test_every_file_that_is_named_exists():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    tree = re.search(r"```\nsrc/scalablevit/\n(.*?)```", README, flags=re.DOTALL)
    assert tree is not None
    for line in tree.group(1).splitlines():
        assert (ROOT / "src/scalablevit" / line.split()[0]).exists(), line


def test_the_commands_are_those_of_the_makefile_and_the_cli():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    from scalablevit.cli import VERBS

    for verb in re.findall(r"^scalablevit ([a-z]+)", README, flags=re.MULTILINE):
        assert verb in VERBS
