"""RandAugment and colour jitter: timm's and torchvision's own results, from our generator alone."""

import random as python_random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms.v2 import functional

from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.data import DecodedImages, TrainingSet
from scalablevit.classification.policies import RandAugment, global_randomness, jitter
from scalablevit.preprocessing import Preprocessing

POLICY = "rand-m9-mstd0.5-inc1"


def preprocessing(channels):
    return Preprocessing(size=(20, 24), channels=channels, mean=(0.4,) * channels, std=(0.2,) * channels)


def pixels(channels, seed=0):
    return torch.randint(0, 256, (channels, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_is_what_timm_makes_of_an_image():
    hparams = {"translate_const": 9, "img_mean": (102, 102, 102), "interpolation": Image.Resampling.BICUBIC}
    theirs = rand_augment_transform(POLICY, hparams)
    ours, changed = RandAugment(POLICY, preprocessing(3)), 0
    for seed in range(20):
        with global_randomness(np.random.default_rng(seed)):
            expected = np.array(theirs(Image.fromarray(pixels(3).permute(1, 2, 0).numpy())))
        result = ours(pixels(3), np.random.default_rng(seed))
        assert np.array_equal(result.permute(1, 2, 0), expected)
        changed += not torch.equal(result, pixels(3))
    assert changed > 8  # each of two operations is applied to half of the images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", [POLICY, "rand-m10-n4-p1", "rand-m9-tweights"])
def test_depends_on_its_generator_alone_and_leaves_others_as_they_were(channels, policy):
    augment = RandAugment(policy, preprocessing(channels))
    for seed in range(40):  # so that each operation has its turn
        python_random.seed(5)
        np.random.seed(5)
        first = augment(pixels(channels), np.random.default_rng(seed))
        assert (python_random.random(), np.random.random()) == pytest.approx((0.6229016948897019, 0.22199317108973948))
        assert torch.equal(first, augment(pixels(channels), np.random.default_rng(seed)))
        assert (first.shape, first.dtype) == ((channels, 20, 24), torch.uint8)
    assert not torch.equal(first, augment(pixels(channels), np.random.default_rng(1000)))


def test_jitter_applies_its_factors_in_its_order():
    random = np.random.default_rng(3)
    factors, order = random.uniform(0.6, 1.4, 3), random.permutation(3)
    changes = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
    for channels in (1, 3):
        expected = pixels(channels)
        for index in order:
            expected = changes[index](expected, factors[index])
        result = jitter(pixels(channels), 0.4, np.random.default_rng(3))
        assert torch.equal(result, expected)
        assert not torch.equal(result, pixels(channels))


@pytest.mark.parametrize("policy", ["rand-x9", "rand-m", "augmix", "rand-m9-", "rand-mstd", "rand-p2", "m9"])
def test_policies_that_timm_would_not_read_as_meant_are_refused(policy):
    with pytest.raises(ValueError, match=f"rand_augment is '{policy}'; .* for example rand-m9-mstd0.5-inc1"):
        TrainConfig(rand_augment=policy)


def test_a_sample_depends_on_seed_epoch_and_index_alone(data):
    from scalablevit.classification.augmentation import Augmentation
    from scalablevit.classification.sources import find_training_data

    images = find_training_data(data, seed=0, val_fraction=0.2).training
    options = {"random_crop": "pad", "padding": 1, "smallest_area": 0.5, "flip": 0.5, "erasing": 0.5}
    augmentation = Augmentation(
        preprocessing=preprocessing(1), rand_augment=POLICY, color_jitter=0.4, erasing_mode="pixel", **options
    )
    sets = [TrainingSet(DecodedImages(images.paths, 1, limit_mb=9), images, augmentation, seed=s) for s in (0, 0, 1)]
    first = [sets[0][2, index][0] for index in range(9)]
    again = [sets[1][2, index][0] for index in reversed(range(9))][::-1]
    assert all(map(torch.equal, first, again))
    for others in ([sets[2][2, i][0] for i in range(9)], [sets[0][3, i][0] for i in range(9)]):
        assert not any(map(torch.equal, first, others))
    assert not torch.equal(sets[0][2, 0, 1][0], first[0])  # the same image, for the second time in the epoch
