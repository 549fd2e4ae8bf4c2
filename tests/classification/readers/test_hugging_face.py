"""Data sets of Hugging Face's library."""

import numpy as np
import pytest

from scalablevit.classification.readers import open_set
from scalablevit.images import read_image
from tests.classification.readers import sets

datasets = pytest.importorskip("datasets")
NAMES = sets.NAMES


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def write_parquet(folder):
    for split in ("train", "test"):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        sets.table(split).to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


def check(images, split):
    assert images.classes == NAMES
    assert images.targets().tolist() == sets.labels(split)
    for place, expected in zip(images.paths, sets.pixels(split), strict=True):
        assert np.array_equal(np.asarray(read_image(place, 1)), expected)


def test_a_folder_of_parquet_files(tmp_path):
    write_parquet(tmp_path / "set")
    image_set = open_set(f"hfds/{tmp_path / 'set'}:{tmp_path / 'cache'}")
    assert sorted(image_set.splits) == ["test", "train"]
    for split in ("train", "test"):
        check(image_set.images(split), split)
    assert str(image_set.images("train").paths[5]).endswith("/train/5")


def test_a_folder_that_save_to_disk_wrote(tmp_path):
    datasets.DatasetDict({split: sets.table(split) for split in ("train", "test")}).save_to_disk(str(tmp_path / "set"))
    image_set = open_set(f"hfds/{tmp_path / 'set'}")
    check(image_set.images("test"), "test")


def test_a_folder_of_images(tmp_path):
    for split in ("train", "test"):
        for index, image in enumerate(sets.pixels(split)):
            folder = tmp_path / "set" / split / f"{sets.labels(split)[index]}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index}.png").write_bytes(sets.png(image))
    images = open_set(f"hfds/{tmp_path / 'set'}:{tmp_path / 'cache'}").images("test")
    assert images.classes == ("0", "1", "2")
    shown = {
        np.asarray(read_image(place, 1)).tobytes(): int(label)
        for place, label in zip(images.paths, images.targets(), strict=True)
    }
    assert shown == {
        image.tobytes(): label for image, label in zip(sets.pixels("test"), sets.labels("test"), strict=True)
    }


def saved(tmp_path, part):
    part.save_to_disk(str(tmp_path / "set"))
    return f"hfds/{tmp_path / 'set'}"


def test_the_column_of_labels_is_found_or_given(tmp_path):
    fine = (datasets.ClassLabel(names=["a", "b", "c", "d"]), [3] * 30)
    data = saved(tmp_path, sets.table("train", fine=fine))
    assert open_set(data).images("train").classes == NAMES
    assert open_set(data, target_key="fine").images("train").classes == ("a", "b", "c", "d")
    with pytest.raises(ValueError, match="has no column 'fin', but image, label, fine"):
        open_set(data, target_key="fin").images("train")
    data = saved(tmp_path / "2", sets.table("train", fine=fine).rename_column("label", "coarse"))
    with pytest.raises(
        ValueError, match=r"several columns of classes; its columns are image, coarse, fine.*--target-key"
    ):
        open_set(data).images("train")


def test_names_and_lists_are_labels_too(tmp_path):
    words = sets.table("train", word=(datasets.Value("string"), [NAMES[label] for label in sets.labels("train")]))
    images = open_set(saved(tmp_path, words), target_key="word").images("train")
    assert images.classes == tuple(sorted(NAMES))
    several = (datasets.List(datasets.ClassLabel(names=list(NAMES))), [[0, 2], [], [1]] * 10)
    images = open_set(saved(tmp_path / "2", sets.table("train", several=several)), target_key="several").images("train")
    assert images.multi_label
    assert images.targets()[:3].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_a_part_without_labels_is_refused(tmp_path):
    part = sets.table("train", hidden=(datasets.Value("int64"), [-1] * 30))
    with pytest.raises(ValueError, match="image 0 has the label -1"):
        open_set(saved(tmp_path, part), target_key="hidden").images("train")


def test_what_cannot_be_loaded_is_said(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        open_set(f"hfds/{tmp_path}/nothing")
    with pytest.raises(ValueError, match="has no column of images, but label"):
        open_set(saved(tmp_path, sets.table("train").remove_columns("image"))).images("train")
    with pytest.raises(ValueError, match=r"hfds/x cannot be loaded \(.*\): give a set of the hub"):
        open_set("hfds/x")


def test_an_empty_cell_is_an_image_that_cannot_be_read(tmp_path):
    cells = {"image": [{"bytes": b"", "path": None}, None], "label": [0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    images = open_set(saved(tmp_path, datasets.Dataset.from_dict(cells, features=features))).images("train")
    for place in images.paths:
        with pytest.raises(ValueError, match=r"train/\d is empty \(0 bytes\)"):
            read_image(place, 3)
