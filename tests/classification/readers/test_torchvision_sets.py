"""Sets of torchvision's by name."""

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from scalablevit.classification.readers import download_set, open_set
from scalablevit.classification.readers.arrays import ArrayStore
from scalablevit.images import StoredImage, read_image
from tests.classification.readers import sets


def test_a_set_is_the_same_as_torchvision_gives_it(tmp_path):
    sets.write_idx(tmp_path / "FashionMNIST" / "raw")
    image_set = open_set(f"torch/fashion_mnist:{tmp_path}")
    for split in ("train", "test"):
        theirs = FashionMNIST(tmp_path, train=split == "train")
        ours = image_set.images(split)
        assert ours.classes == tuple(theirs.classes)
        assert len(ours) == len(theirs)
        for place, target, (image, label) in zip(ours.paths, ours.targets(), theirs, strict=True):
            assert np.array_equal(np.asarray(read_image(place, 1)), np.asarray(image))
            assert target == label


def test_the_folder_may_hold_the_files_themselves(tmp_path):
    sets.write_idx(tmp_path)
    assert open_set(f"torch/mnist:{tmp_path}").images("test").targets().tolist() == sets.labels("test")


@pytest.mark.parametrize("name", ["FashionMNIST", "FASHION_MNIST", "fashion-mnist"])
def test_torchvisions_own_names_and_other_spellings_mean_the_same(tmp_path, name):
    sets.write_idx(tmp_path)
    images = open_set(f"torch/{name}:{tmp_path}").images("test")
    assert images.classes == open_set(f"torch/fashion_mnist:{tmp_path}").images("test").classes


def test_colour_comes_out_as_it_went_in():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    for index in range(3):
        image = read_image(StoredImage(ArrayStore("x", pixels), index), 3)
        assert np.array_equal(np.asarray(image), pixels[index])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("torch/cifar:x", r"no such set \(did you mean cifar10\?\); there are cifar10, cifar100"),
        ("torch/cifar10", "does not say where the set lies: give torch/cifar10:FOLDER"),
        ("torch/cifar10:nowhere", "is not in nowhere, or not whole .* --download fetches it"),
        ("torch/imagenet:x", "give that folder, train/ and val/ in it"),
        ("torch/:x", "give torch/NAME:FOLDER"),
        ("torch/mnist:", "give torch/NAME:FOLDER"),
    ],
)
def test_what_cannot_be_opened_is_said(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_set(data).images("train")


def test_download_is_asked_of_torchvision(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(FashionMNIST, "download", lambda self: asked.append(self.root))
    sets.write_idx(tmp_path / "FashionMNIST" / "raw")
    download_set(f"torch/fashion_mnist:{tmp_path}")
    assert asked == [tmp_path]
    for data in ("hfds/x", tmp_path):
        with pytest.raises(ValueError, match="--download is for torchvision's sets"):
            download_set(data)


def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("no network")

    monkeypatch.setattr(FashionMNIST, "download", fail)
    with pytest.raises(ValueError, match="cannot be fetched \\(no network\\): put its files into"):
        download_set(f"torch/fashion_mnist:{tmp_path}")
