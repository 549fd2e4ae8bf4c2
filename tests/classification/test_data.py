"""Labelled images as samples and batches."""

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from scalablevit.classification.augmentation import Augmentation
from scalablevit.classification.class_folders import images_in_class_folders
from scalablevit.classification.data import (
    DecodedImages,
    EpochSampler,
    EvaluationSet,
    TrainingSet,
    Unreadable,
    UnreadableImages,
    collate,
)
from scalablevit.preprocessing import Preprocessing
from tests.conftest import make


def test_small_sets_are_kept_and_large_ones_read_again(tmp_path):
    paths = images_in_class_folders(make(tmp_path, "a/1.png", "a/2.png")).paths
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
    images = images_in_class_folders(data / "train")
    preprocessing = Preprocessing(size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
    augmentation = Augmentation(
        preprocessing=preprocessing, random_crop="none", padding=0, smallest_area=0.3, flip=0.0, erasing=1.0
    )
    decoded = DecodedImages(images.paths, 1, limit_mb=1)
    dataset = TrainingSet(decoded, images, augmentation, seed=7)
    assert torch.equal(dataset[0, 3][0], dataset[0, 3][0])
    assert not torch.equal(dataset[0, 3][0], dataset[1, 3][0])


# Python warns of forks in a process with threads, which is what a loader's workers are, and PyTorch of more of them
# than there are cores.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_do_not_depend_on_the_number_of_workers(data):
    images = images_in_class_folders(data / "train")
    preprocessing = Preprocessing(size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
    augmentation = Augmentation(
        preprocessing=preprocessing, random_crop="resize", padding=0, smallest_area=0.3, flip=0.5, erasing=0.5
    )

    def batches(workers, before=0):
        sampler = EpochSampler(len(images.paths), seed=7)
        decoded = DecodedImages(images.paths, 1, limit_mb=1)
        dataset = TrainingSet(decoded, images, augmentation, seed=7)
        for index in range(before):  # what was asked for earlier has no influence
            dataset[0, index]
        sampler.set_epoch(2)
        return list(DataLoader(dataset, 10, sampler=sampler, num_workers=workers, collate_fn=collate))

    expected = batches(0)
    for others in (batches(2), batches(0, before=5)):
        for (pixels, labels, _), (other_pixels, other_labels, _) in zip(expected, others, strict=True):
            assert torch.equal(pixels, other_pixels)
            assert torch.equal(labels, other_labels)


def test_what_cannot_be_read_is_left_out_of_its_batch_and_named(tmp_path):
    images = images_in_class_folders(make(tmp_path, "a/1.png", "b/2.png", "b/3.png"))
    images.paths[1].write_bytes(images.paths[1].read_bytes()[:40])
    for limit_mb in (0, 1):
        decoded = DecodedImages(images.paths, 1, limit_mb=limit_mb)
        assert [each.path for each in decoded.unreadable] == ([str(images.paths[1])] if limit_mb else [])
        dataset = EvaluationSet(decoded, images, Preprocessing(size=(8, 8), channels=1, mean=(0.5,), std=(0.5,)))
        batch = collate([dataset[index] for index in range(3)])
        assert batch.pixels.shape == (2, 1, 8, 8)
        assert batch.targets.tolist() == [0, 1]
        assert [each.path for each in batch.unreadable] == [str(images.paths[1])]
    nothing = collate([dataset[1]])
    assert len(nothing.targets) == 0


def test_a_few_unreadable_images_are_noted_and_more_are_an_error():
    images = UnreadableImages(total=200, limit=0.01)
    images.add([Unreadable("a.jpg", "is empty")])
    images.add([Unreadable("a.jpg", "is empty"), Unreadable("b.jpg", "is cut off")])
    assert images.reasons == {"a.jpg": "is empty", "b.jpg": "is cut off"}
    with pytest.raises(
        ValueError, match=r"3 of 200 images cannot be read, more than 1 %, for example a\.jpg \(is empty\)"
    ):
        images.add([Unreadable("c.jpg", "is gone")])
