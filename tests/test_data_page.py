"""The page about data: each of its commands is executed, on sets made here."""

import contextlib
import io
import re

import pytest

from scalablevit.cli import build_parser, known_options, main, with_underscores
from tests.classification.readers import sets
from tests.conftest import write_images
from tests.documents import blocks, read, run_console

PAGE = read("docs/data.md")


@pytest.fixture
def forms(tmp_path, monkeypatch):
    """A set in each form that the page names."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    for split, seed in (("train", 0), ("val", 1)):
        write_images(tmp_path / "clothes" / split, 8, seed=seed)
    images = sorted((tmp_path / "clothes" / "train").rglob("*.png"))
    rows = [f"{image.relative_to(tmp_path)},{image.parent.name}" for image in images]
    (tmp_path / "clothes.csv").write_text("\n".join(["path,label", *rows]))
    sets.write_idx(tmp_path / "fashion-mnist")
    for split in ("train", "test"):
        sets.write_shards(tmp_path / "shards", split)
        (tmp_path / "tables" / "clothes").mkdir(parents=True, exist_ok=True)
        sets.table(split).to_parquet(str(tmp_path / "tables" / "clothes" / f"{split}.parquet"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("forms")
def test_each_command_does_what_the_page_says():
    commands = [line for _, block in blocks(PAGE, "console") for line in block.splitlines()]
    said = [run_console(command, lambda arguments: None) for command in commands]
    assert len(commands) == 9
    assert all("all is well" in text for text in said[:8])
    for text, images in zip(said[3:8], (30, 30, 30, 42, 30), strict=True):
        assert f"{images} images, {images} of them grey; height x width from 28x28" in text
    assert "30 labels to train on, 12 to validate with" in said[8]
    assert "nothing was trained" in said[8]


@pytest.mark.usefixtures("forms")
def test_what_is_left_is_said():
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert not main(["train", "fashion-mnist", "--dry-run", "--out", "runs/x"])
    assert "neither trained on nor validated with: test; kept for `scalablevit evaluate`" in output.getvalue()
    assert "were drawn for validation, the same part of each class; the seed says which" in output.getvalue()


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "hfids/./nothing"], "there is no folder nothing"),
        (["check", "hfids/tables/clothes"], "name one of its parts with --val-split, or give hfds/tables/clothes"),
        (["check", "hfds/./nothing"], "there is no folder nothing"),
        (["check", "wds/shard"], "wds/shard names no folder"),
        (["check", "clothes", "--val-split", "test"], "are for sets by name"),
        (["check", "clothes", "--download"], "--download is for torchvision's sets"),
        (["train", "clothes", "--download", "--out", "x"], "--download is for torchvision's sets"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("forms")
def test_a_missing_package_is_named_with_its_extra(monkeypatch, capsys):
    monkeypatch.setattr("scalablevit.extras.find_spec", lambda name: None)
    assert main(["check", "hfds/tables/clothes"]) == 2
    assert "datasets is not installed: install scalablevit[datasets]" in capsys.readouterr().err


def test_the_page_names_flags_that_exist():
    known = known_options(build_parser())
    for flag in re.findall(r"`(--[a-z-]+)", PAGE):
        assert with_underscores(flag) in known, flag
