"""Looking through data sets that have something wrong with them."""

import shutil

import pytest
from PIL import Image

from scalablevit.classification.checking import check
from tests.conftest import write_images


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "train", 4, seed=0)
    write_images(tmp_path / "val", 2, seed=1)
    return tmp_path


def test_a_set_without_faults(folder):
    result = check(folder)
    assert result.problems() == []
    assert result.images == 18
    assert result.counts["train"] == {"above": 4, "below": 4, "dark": 4}
    assert result.counts["val"] == {"above": 2, "below": 2, "dark": 2}
    assert (result.smallest, result.median, result.largest) == ((12, 8),) * 3
    assert result.grey == 18
    assert not result.drawn


def test_each_fault_is_found(folder):
    shutil.copy(folder / "train/dark/000.png", folder / "val/dark/copy.png")
    shutil.copy(folder / "train/above/000.png", folder / "train/above/again.png")
    shutil.copy(folder / "train/below/000.png", folder / "train/dark/wrong.png")
    (folder / "train/dark/broken.jpg").write_bytes(b"")
    (folder / "train/dark/notes.txt").write_text("mine")
    Image.new("RGB", (40, 30), "red").save(folder / "train/above/large.png")
    shutil.rmtree(folder / "val/below")
    result = check(folder)
    assert list(result.unreadable) == [str(folder / "train/dark/broken.jpg")]
    assert result.shared == ((str(folder / "train/dark/000.png"), str(folder / "val/dark/copy.png")),)
    assert (str(folder / "train/above/000.png"), str(folder / "train/above/again.png")) in result.repeated
    assert result.conflicting == ((str(folder / "train/below/000.png"), str(folder / "train/dark/wrong.png")),)
    assert result.ignored == (str(folder / "train/dark/notes.txt"),)
    assert result.missing == ("below",)
    assert result.largest == (30, 40)
    assert result.grey == result.images - 2
    assert [line.split()[0] for line in result.problems()] == ["1", "1", "1", "2", "no"]


def test_an_empty_class_folder_is_one_of_the_problems(folder):
    (folder / "train" / "new").mkdir()
    assert check(folder).problems()[0] == "no images to train on of new: training refuses such a class"


def test_several_labels_are_counted_by_images(folder, tmp_path):
    lines = [f"train/dark/00{index}.png,{labels}" for index, labels in enumerate(("a;b", "a", '"b, c"', ""))]
    (tmp_path / "set.csv").write_text(
        "\n".join(["path,labels", *lines, "train/above/000.png,a", "train/above/001.png,b"])
    )
    result = check(tmp_path / "set.csv", val_fraction=0.3)
    assert result.images == 6
    assert any("'b, c'" in problem for problem in result.problems())


def test_imbalance_is_told(tmp_path):
    write_images(tmp_path / "train", 20, seed=0)
    write_images(tmp_path / "val", 2, seed=1)
    for path in sorted((tmp_path / "train/dark").iterdir())[2:]:
        path.unlink()
    assert check(tmp_path).problems() == ["the largest class has 10 times as many images to train on as the smallest"]


def test_a_set_without_a_readable_image_is_refused(folder):
    for path in folder.glob("*/*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 18 images"):
        check(folder)
