"""The page on timm: each of its blocks is executed, in its order, and prints what it says."""

import sys

import pytest

from tests.documents import blocks, printed, promised, read, run_console

PAGE = read("docs/use-with-timm.md")


@pytest.mark.filterwarnings("ignore")  # those of other packages: timm, for one, leaves image files open
def test_each_block_prints_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for kind, block in blocks(PAGE, "console", "python"):
        if kind == "console":
            run_console(block, lambda arguments: monkeypatch.setattr(sys, "argv", arguments))
        else:
            assert promised(block)
            assert printed(block, namespace) == promised(block)
