"""The README's blocks run and print what they say."""

import re

import pytest

from tests.documents import ROOT, blocks, printed, promised, read

README = read("README.md")
BLOCKS = [block for _, block in blocks(README, "python")]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n", 1)[0])
def test_a_block_prints_what_its_comments_say(block):
    assert printed(block) == promised(block)


def test_there_are_blocks():
    assert len(BLOCKS) == 4


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
