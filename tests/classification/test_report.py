"""The report as it lies in its folder. Warnings are errors here, those of missing glyphs among them."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from scalablevit.classification.report import PICTURES, check_report_folder, write_report
from scalablevit.classification.run_folder import EpochMetrics
from scalablevit.classification.scores import Answers, score_answers

VOID = {"meta", "img", "source"}


class Page(HTMLParser):
    """A page's tags and text; fails where a tag is not closed by its like."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def find(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def one_label(targets, named, classes, sure=4.0):
    logits = torch.nn.functional.one_hot(torch.tensor(named), len(classes)) * sure
    return Answers(logits=logits.float(), targets=torch.tensor(targets), classes=tuple(classes))


def epochs(count):
    return [
        EpochMetrics(
            epoch=epoch,
            train_loss=2 / epoch,
            val_loss=1 / epoch,
            val_score=50.0 + epoch,
            learning_rate=0.1,
            seconds=1.0,
            images_per_second=100.0,
        )
        for epoch in range(1, count + 1)
    ]


@pytest.fixture
def paths(tmp_path):
    """Six images: tiny and grey, large, narrow, small, one that is no image and one that has gone."""
    random = np.random.default_rng(0)
    sizes = {"tiny": (28, 28), "large": (1200, 900, 3), "narrow": (3, 400, 3), "small": (120, 120, 3)}
    found = []
    for name, size in sizes.items():
        found.append(tmp_path / "images" / f"{name}.png")
        found[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, size, dtype=np.uint8)).save(found[-1])
    (tmp_path / "images" / "text.png").write_text("not an image")
    return [*found, tmp_path / "images" / "text.png", tmp_path / "images" / "gone.png"]


@pytest.fixture
def write(tmp_path):
    """Writes a report and reads its page."""

    def write(answers, paths, folder="report", **options):
        options = {"title": "A report", "result": options.get("result") or score_answers(answers)} | options
        page = write_report(tmp_path / folder, answers=answers, paths=paths, **options)
        assert page == tmp_path / folder / "index.html"
        return Page(page.read_text(encoding="utf-8"))

    return write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_all_pictures_and_the_page(write, paths, tmp_path):
    answers = one_label([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1], ["cat", "dog"])
    page = write(answers, paths, metrics=epochs(3), facts={"Model": "nano", "Seed": "7"})
    assert names(tmp_path / "report") == sorted([*PICTURES, "index.html"])
    for name in PICTURES:
        with Image.open(tmp_path / "report" / name) as image:
            image.load()
            assert min(image.size) > 240
    assert "Of 6 images of 2 classes, the model names 5 rightly: 83.3 %" in page.text
    assert "The model most often takes “cat” for “dog”: 1 of 3 images." in page.text
    assert "cat 3 100.0 % 66.7 %" in page.text  # images, precision, recall
    assert "Model nano Seed 7" in page.text


def test_the_page_needs_no_other_file(write, paths):
    answers = one_label([0, 1, 0, 1, 0, 1], [0, 1, 1, 1, 0, 1], ["cat", "dog"])
    page = write(answers, paths, metrics=epochs(2))
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    for _, attributes in page.tags:
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
    (style,) = (text for text in page.words if "prefers-color-scheme" in text)
    assert "url(" not in style
    assert "@import" not in style
    assert not any("http:" in text or "https:" in text for text in page.words)
    for attributes in page.find("img"):
        content = base64.b64decode(attributes["src"].partition("base64,")[2])
        Image.open(io.BytesIO(content)).load()
        assert len(attributes["alt"]) > 5
    links = {attributes["href"][1:] for attributes in page.find("a")}
    assert links == {attributes["id"] for attributes in page.find("section")}


def test_dark_pages_have_dark_charts(write, paths):
    page = write(one_label([0, 1], [0, 0], ["cat", "dog"]), paths[:2])
    charts = [attributes for attributes in page.find("img") if attributes.get("class") == "chart"]
    assert len(charts) == len(page.find("source")) == 3
    for light, dark in zip(charts, page.find("source"), strict=True):
        corners = []
        for uri in (light["src"], dark["srcset"]):
            with Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))) as image:
                corners.append(sum(image.convert("RGB").getpixel((1, 1))))
        assert corners[0] == 3 * 255
        assert corners[1] < 150
        assert dark["media"] == "(prefers-color-scheme: dark)"


def test_the_worst_mistake_is_first(write, paths):
    answers = one_label([0, 0, 0, 1], [0, 1, 1, 1], ["cat", "dog"])
    answers.logits[2] *= 2
    text = write(answers, paths[:4]).text
    mistakes = text.partition("Worst mistakes All mistakes")[2]
    assert mistakes.index("narrow.png") < mistakes.index("large.png")
    assert "✗ dog 98 % is cat 2 % large.png" in mistakes
    assert "small.png" not in mistakes.partition("Sample predictions")[0]


def test_what_classes_and_files_are_called_is_text(write, paths, tmp_path):
    hostile = "<script>alert(1)</script>"
    classes = [hostile, "a & b", r"$\frac$", "猫 \U0001f408", "two\nlines", "x" * 300, '"quoted"', "\udcff"]
    answers = one_label([0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0], classes)
    skipped = {"<b>.png": "5 < 6 & so on"}
    page = write(answers, paths, title=hostile, facts={"<i>": "<u>"}, skipped=skipped, metrics=epochs(1))
    assert {"script", "b", "i", "u"}.isdisjoint(tag for tag, _ in page.tags)
    assert page.find("title") == [{}]
    assert page.text.count(hostile) >= 4
    assert "takes “<script>alert(1)</script>” for “a & b”" in page.text
    assert "猫" in page.text
    assert "<b>.png 5 < 6 & so on" in page.text
    assert "x" * 300 not in page.text
    assert any(attributes.get("title") == "x" * 300 for attributes in page.find("abbr"))
    raw = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in raw.lower()


def test_images_that_cannot_be_read_have_an_empty_frame(write, paths):
    page = write(one_label([0, 1, 0, 1, 0, 1], [0, 1, 0, 1, 0, 1], ["cat", "dog"]), paths)
    assert page.text.count("cannot be read") == 2
    shown = [attributes for attributes in page.find("img") if attributes.get("class") != "chart"]
    assert [attributes.get("class") for attributes in shown] == ["tiny", None, None, None]


def test_without_mistakes_and_training(write, paths, tmp_path):
    page = write(one_label([0, 1], [0, 1], ["cat", "dog"]), paths[:2])
    assert "There are no mistakes" in page.text
    assert "Training" not in page.text
    assert names(tmp_path / "report") == [
        "calibration.png",
        "classes.png",
        "confusion.png",
        "index.html",
        "predictions.png",
    ]


def test_one_class_in_the_data_and_one_at_all(write, paths, tmp_path):
    answers = one_label([0], [0], ["cat", "dog", "owl"])
    assert "A dash:" in write(answers, paths[:1]).text
    single = Answers(logits=torch.zeros(1, 1), targets=torch.zeros(1, dtype=torch.long), classes=("cat",))
    result = replace(score_answers(answers), confusion=((1,),), precision={"cat": 100.0}, recall={"cat": 100.0})
    write(single, paths[:1], folder="single", result=result)
    assert "confusion.png" not in names(tmp_path / "single")


def test_hundreds_of_classes(write, paths, tmp_path):
    classes = [f"class {index:03}" for index in range(200)]
    targets = list(range(200)) * 2
    answers = one_label(targets, [*range(200), 1, *range(200)][: len(targets)], classes)
    page = write(answers, [paths[0]] * 400)
    assert "The 30 lowest of 200 classes are drawn." in page.text
    assert page.find("details") == [{}]
    assert "All 200 classes" in page.text
    assert all(name in page.text for name in classes)
    assert (tmp_path / "report" / "index.html").stat().st_size < 3_000_000
    with Image.open(tmp_path / "report" / "classes.png") as image:
        assert image.height < 2000


def test_several_labels(write, paths, tmp_path):
    logits = torch.tensor([[3.0, -3.0, 2.0], [-2.0, 2.0, -3.0], [-2.0, -2.0, -2.0]])
    targets = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    answers = Answers(logits=logits, targets=targets, classes=("cat", "dog", "owl"))
    page = write(answers, paths[:3], metrics=epochs(1))
    assert names(tmp_path / "report") == sorted({*PICTURES, "index.html"} - {"confusion.png"})
    assert "What it confuses" not in page.text
    assert "top-" not in page.text
    assert "✓ cat 95 % ✗ owl 88 % misses dog 5 % tiny.png" in page.text
    assert "no label given misses owl 12 %" in page.text
    assert "Of 3 images of 3 classes, the model gives 1 exactly" in page.text
    assert "Class Images AP Precision Recall" in page.text


def test_what_could_not_be_read_is_listed(write, paths):
    answers = one_label([0, 1], [0, 1], ["cat", "dog"])
    result = replace(score_answers(answers), skipped={"a.png": "broken"})
    text = write(answers, paths[:2], result=result, skipped={"b.png": "empty"}).text
    assert "2 images could not be read" in text
    assert "a.png broken b.png empty" in text


def test_scores_that_are_no_numbers(write, paths):
    answers = Answers(logits=torch.full((2, 2), torch.nan), targets=torch.tensor([0, 1]), classes=("cat", "dog"))
    row = replace(epochs(1)[0], train_loss=float("nan"), val_loss=float("nan"))
    assert "nan" in write(answers, paths[:2], metrics=[row]).text


def test_a_new_report_replaces_the_old_one_and_nothing_else(write, paths, tmp_path):
    write(one_label([0, 1], [1, 1], ["cat", "dog"]), paths[:2], metrics=epochs(1))
    (tmp_path / "report" / "notes.txt").write_text("mine")
    text = write(one_label([0, 1], [0, 1], ["cow", "dog"]), paths[:2]).text
    assert "cow" in text
    assert "cat" not in text
    assert (tmp_path / "report" / "notes.txt").read_text() == "mine"
    assert {"curves.png", "mistakes.png"}.isdisjoint(names(tmp_path / "report"))
    assert not any(name.startswith(".") for name in names(tmp_path / "report"))


def test_the_old_report_stays_if_the_new_one_fails(write, paths, tmp_path, monkeypatch):
    write(one_label([0, 1], [1, 1], ["cat", "dog"]), paths[:2])
    before = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    monkeypatch.setattr("scalablevit.classification.report.charts.draw_calibration", None)
    with pytest.raises(TypeError):
        write(one_label([0, 1], [0, 1], ["cow", "dog"]), paths[:2])
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == before


@pytest.mark.parametrize("name", ["index.html", "confusion.png"])
def test_a_file_that_no_report_wrote_is_never_replaced(write, paths, tmp_path, name):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / name).write_text("mine")
    with pytest.raises(ValueError, match="was not written by a report"):
        write(one_label([0, 1], [0, 1], ["cat", "dog"]), paths[:2])
    assert names(tmp_path / "report") == [name]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "report").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        check_report_folder(tmp_path / "report")


def test_each_answer_needs_its_image(write, paths):
    with pytest.raises(ValueError, match="1 paths and 2 answers"):
        write(one_label([0, 1], [0, 1], ["cat", "dog"]), paths[:1])


def test_the_same_answers_give_the_same_report(write, paths, tmp_path):
    answers = one_label([0, 1, 0, 1, 0, 1], [0, 1, 1, 1, 0, 1], ["cat", "dog"])
    for folder in ("first", "second"):
        write(answers, paths, folder=folder, metrics=epochs(2))
    for name in (*PICTURES, "index.html"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_users_settings_do_not_matter(write, paths, tmp_path):
    import matplotlib

    answers = one_label([0, 1], [1, 1], ["cat", "dog"])
    write(answers, paths[:2], folder="first")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "savefig.dpi": 20, "xtick.major.size": 20}):
        write(answers, paths[:2], folder="second")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "first" / "classes.png").read_bytes() == (tmp_path / "second" / "classes.png").read_bytes()


def test_headings_are_in_order(write, paths):
    page = write(one_label([0, 1], [1, 1], ["cat", "dog"]), paths[:2])
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
