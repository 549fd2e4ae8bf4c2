"""Folders of idx files."""

import gzip

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from scalablevit.classification.readers.idx_files import FASHION_LABELS, is_idx_folder, open_idx_folder, read_idx
from scalablevit.images import read_header, read_image
from tests.classification.readers import sets


@pytest.mark.parametrize(("opened", "suffix"), [(open, ""), (gzip.open, ".gz")])
def test_images_and_labels_are_those_of_the_files(tmp_path, opened, suffix):
    folder = sets.write_idx(tmp_path, opened, suffix)
    assert is_idx_folder(folder)
    image_set = open_idx_folder(folder)
    assert list(image_set.splits) == ["train", "test"]
    for split in ("train", "test"):
        images = image_set.images(split)
        assert images.classes == ("0", "1", "2")
        assert images.targets().tolist() == sets.labels(split)
        for place, expected in zip(images.paths, sets.pixels(split), strict=True):
            assert np.array_equal(np.asarray(read_image(place, 1)), expected)
    place = image_set.images("test").paths[3]
    assert (str(place), place.name) == (f"{folder}/test/3", "3")
    header = read_header(place)
    assert (header.size, header.is_grey) == ((28, 28), True)


def test_files_are_read_as_torchvision_reads_them(tmp_path):
    sets.write_idx(tmp_path)
    assert np.array_equal(
        read_idx(tmp_path / "t10k-images-idx3-ubyte"), read_image_file(tmp_path / "t10k-images-idx3-ubyte").numpy()
    )
    assert np.array_equal(
        read_idx(tmp_path / "t10k-labels-idx1-ubyte"), read_label_file(tmp_path / "t10k-labels-idx1-ubyte").numpy()
    )


def test_class_names_come_from_a_file_beside_the_images(tmp_path):
    sets.write_idx(tmp_path)
    (tmp_path / "labels.txt").write_text("top\nmiddle\nbottom\n")
    assert open_idx_folder(tmp_path).images("train").classes == ("top", "middle", "bottom")
    (tmp_path / "labels.txt").write_text("top\nmiddle\n")
    with pytest.raises(ValueError, match="image 2 has the label 2, but labels go from 0 to 1"):
        open_idx_folder(tmp_path).images("train")


def test_fashion_mnist_is_known_by_its_labels(tmp_path, monkeypatch):
    sets.write_idx(tmp_path)
    content = (tmp_path / "train-labels-idx1-ubyte").read_bytes()
    from hashlib import sha256

    module = "scalablevit.classification.readers.idx_files.FASHION_LABELS"
    monkeypatch.setattr(module, FASHION_LABELS | {sha256(content).hexdigest()})
    assert open_idx_folder(tmp_path).images("train").classes == tuple(FashionMNIST.classes)
    assert open_idx_folder(tmp_path).images("test").classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG....", "is not an idx file of bytes"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x05abc", r"holds 3 bytes, but says it has \(5,\)"),
        (b"\x00\x00\x08\x03\x00\x00", "ends within its header"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "x")


def test_a_damaged_compressed_file_is_named(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"\x00\x00\x08\x01" + bytes(4))[:-6])
    with pytest.raises(ValueError, match=r"x\.gz cannot be unpacked"):
        read_idx(tmp_path / "x.gz")


def test_images_and_labels_must_be_as_many(tmp_path):
    sets.write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(sets.idx(sets.labels("test")[:5]))
    with pytest.raises(ValueError, match=r"test has images of shape \(12, 28, 28\) and labels of shape \(5,\)"):
        open_idx_folder(tmp_path).images("test")
