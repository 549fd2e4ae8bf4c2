"""The embedded images: complete, unpacked once, safely."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from scalablevit import sample


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_holds_six_hundred_and_one_hundred_images_of_each_of_ten_classes(cache):
    folder = sample.sample_folder()
    assert folder.parent == cache / "scalablevit"
    for split, count in (("train", 600), ("val", 100)):
        classes = sorted((folder / split).iterdir())
        assert len(classes) == 10
        assert [len(list(each.glob("*.png"))) for each in classes] == [count] * 10
    assert "MIT" in (folder / "LICENSE.txt").read_text()


def test_images_are_28_pixels_and_grey(cache):
    for path in sample.sample_images(10):
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((28, 28), "L")


def test_is_unpacked_once(cache):
    folder = sample.sample_folder()
    (folder / "mark").touch()
    assert sample.sample_folder() == folder
    assert (folder / "mark").exists()


def test_several_at_once_leave_one_complete_folder_and_nothing_else(cache):
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: sample.sample_folder(), range(4)))
    assert len(folders) == 1
    assert list((cache / "scalablevit").iterdir()) == list(folders)
    assert len(list(folders.pop().glob("*/*/*.png"))) == 7000


def test_a_failure_leaves_nothing(cache, monkeypatch):
    broken = cache / "broken.zip"
    broken.write_bytes(sample.ARCHIVE.read_bytes()[:-1000])
    monkeypatch.setattr(sample, "ARCHIVE", broken)
    with pytest.raises(Exception, match="zip"):
        sample.sample_folder()
    assert list((cache / "scalablevit").iterdir()) == []


def test_images_are_of_different_classes_first(cache):
    paths = sample.sample_images(12)
    assert len({path.parent.name for path in paths[:10]}) == 10
    assert [path.parent.name for path in paths[10:]] == [path.parent.name for path in paths[:2]]
    assert len(set(paths)) == 12


@pytest.mark.parametrize("count", [0, 1001])
def test_refuses_an_impossible_count(cache, count):
    with pytest.raises(ValueError, match=f"count is {count}; it must be from 1 to 1000"):
        sample.sample_images(count)


def test_the_module_prints_paths(cache):
    command = [sys.executable, "-m", "scalablevit.sample", "--count", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(path) for path in sample.sample_images(3)]
