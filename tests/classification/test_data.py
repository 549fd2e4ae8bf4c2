"""Folders as data sets: what is found, and what is said of mistakes."""

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from scalablevit.classification.augmentation import Augmentation
from scalablevit.classification.data import (
    DecodedImages,
    EpochSampler,
    TrainingSet,
    evaluation_images,
    labelled_images,
    training_images,
)
from scalablevit.preprocessing import Preprocessing


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.new("L", (8, 8), len(name)).save(path)
        else:
            path.write_text("no image")
    return folder


def test_classes_are_sorted_and_images_found_further_down(tmp_path):
    make(tmp_path, "dog/2.png", "dog/old/1.png", "cat/3.PNG".lower(), "dog/notes.txt", ".hidden/1.png", "dog/.x.png")
    found = labelled_images(tmp_path)
    assert found.classes == ("cat", "dog")
    assert [str(path.relative_to(tmp_path)) for path in found.paths] == ["cat/3.png", "dog/2.png", "dog/old/1.png"]
    assert found.labels == (0, 1, 1)


def test_validation_has_the_classes_of_training(tmp_path):
    make(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/1.png", "val/b/1.png")
    training, validation = training_images(tmp_path)
    assert validation.classes == training.classes == ("a", "b", "c")
    assert validation.labels == (1, 2)


def test_evaluation_takes_val_or_the_folder_itself(tmp_path):
    make(tmp_path, "with/val/a/1.png", "with/train/b/1.png", "without/a/1.png")
    assert len(evaluation_images(tmp_path / "with", ["a", "b"]).paths) == 1
    assert evaluation_images(tmp_path / "without", ["b", "a"]).labels == (1,)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/a/1.png", "train/b/1.png"], "holds no folder val/"),
        (["val/a/1.png"], "holds no folder train/"),
        (["train/a/1.png", "val/a/1.png"], "holds one class, 'a'"),
        (["train/1.png", "val/a/1.png"], r"train holds no folders: it must hold one folder per class"),
        (["train/a/1.png", "train/b/1.txt", "val/a/1.png"], r"train/b holds no images \(\.bmp"),
        (
            ["train/a/1.png", "train/b/1.png", "val/z/1.png"],
            r"val/z is a class that the model does not have; it has a, b",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, files, message):
    with pytest.raises(ValueError, match=message) as caught:
        training_images(make(tmp_path, *files))
    assert str(tmp_path) in str(caught.value)


def test_a_missing_folder_and_a_file_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist: give a folder"):
        training_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"file\.txt is a file"):
        training_images(make(tmp_path, "file.txt") / "file.txt")


def test_small_sets_are_kept_and_large_ones_read_again(tmp_path):
    paths = labelled_images(make(tmp_path, "a/1.png", "a/2.png")).paths
    kept, read = DecodedImages(paths, 1, limit_mb=1), DecodedImages(paths, 1, limit_mb=0)
    assert kept[0].tobytes() == read[0].tobytes()
    Image.new("L", (8, 8), 99).save(paths[0])
    assert kept[0].getpixel((0, 0)) != 99
    assert read[0].getpixel((0, 0)) == 99


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(50, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 4) == order(1, 4)
    assert {index for _, index in order(1, 4)} == set(range(50))
    assert {epoch for epoch, _ in order(1, 4)} == {4}
    indices = [[index for _, index in order(*place)] for place in ((1, 4), (1, 5), (2, 4))]
    assert indices[0] != indices[1]
    assert indices[0] != indices[2]


def test_each_epoch_shows_an_image_differently(data):
    images = labelled_images(data / "train")
    preprocessing = Preprocessing(size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
    augmentation = Augmentation(
        preprocessing=preprocessing, random_crop="none", padding=0, smallest_area=0.3, flip=0.0, erasing=1.0
    )
    decoded = DecodedImages(images.paths, 1, limit_mb=1)
    dataset = TrainingSet(decoded, images.labels, augmentation, seed=7)
    assert torch.equal(dataset[0, 3][0], dataset[0, 3][0])
    assert not torch.equal(dataset[0, 3][0], dataset[1, 3][0])


# Python warns of forks in a process with threads, which is what a loader's workers are.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_batches_do_not_depend_on_the_number_of_workers(data):
    images = labelled_images(data / "train")
    preprocessing = Preprocessing(size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
    augmentation = Augmentation(
        preprocessing=preprocessing, random_crop="resize", padding=0, smallest_area=0.3, flip=0.5, erasing=0.5
    )

    def batches(workers, before=0):
        sampler = EpochSampler(len(images.paths), seed=7)
        decoded = DecodedImages(images.paths, 1, limit_mb=1)
        dataset = TrainingSet(decoded, images.labels, augmentation, seed=7)
        for index in range(before):  # what was asked for earlier has no influence
            dataset[0, index]
        sampler.set_epoch(2)
        return list(DataLoader(dataset, 10, sampler=sampler, num_workers=workers))

    expected = batches(0)
    for others in (batches(2), batches(0, before=5)):
        for (pixels, labels), (other_pixels, other_labels) in zip(expected, others, strict=True):
            assert torch.equal(pixels, other_pixels)
            assert torch.equal(labels, other_labels)
