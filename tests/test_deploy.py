"""The page on deployment: each of its blocks is executed."""

import re
import sys

import pytest
from PIL import Image

from scalablevit.sample import sample_images
from tests.documents import ROOT, blocks, printed, promised, read, run_console

PAGE = read("docs/deploy.md")
warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@warnings
@pytest.mark.slow
def test_each_block_does_what_the_page_says(tmp_path, monkeypatch):
    for package in ("onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    Image.open(sample_images(1)[0]).save("image.png")
    namespace, said, first_python = {}, "", None
    for language, block in blocks(PAGE, "console", "python"):
        if language == "console":
            said += run_console(block, lambda arguments: monkeypatch.setattr(sys, "argv", arguments))
        elif first_python is None:  # of a file that is made later
            first_python = block
        else:
            assert printed(block, namespace) == promised(block)
    assert printed(first_python) == promised(first_python)
    assert said.count("logits in float32 differ from the model's by") == 6
    assert said.count("top1 on 1000 images") == 2


def test_the_page_names_options_and_files_that_exist():
    from scalablevit.cli import build_parser, known_options, with_underscores

    known = known_options(build_parser())
    for flag in re.findall(r"`(--[a-z0-9-]+)", PAGE):
        assert with_underscores(flag) in known, flag
    for script in re.findall(r"python (benchmarks/\S+)", PAGE):
        assert (ROOT / script).is_file()


def test_the_page_explains_all_that_an_export_says_of_itself():
    from scalablevit.exporting import Description

    table = PAGE[PAGE.index("| name |") : PAGE.index("With this package")]
    names = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE)))
    described = Description(architecture="", num_classes=1, pretrained_cfg={}).to_strings()
    assert sorted(names) == sorted(described)
