"""Mixup and CutMix mix images and targets in the same proportion."""

import numpy as np
import pytest
import torch

from scalablevit.classification.mixing import mix


def batch():
    """Images that are 0 throughout, of class 0, and 1 throughout, of class 1: the mean of an image is its class."""
    labels = torch.tensor([0, 1] * 4)
    images = labels.view(-1, 1, 1, 1).float().expand(-1, 3, 10, 12)
    return images, torch.nn.functional.one_hot(labels, 2).float()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_say_how_much_of_each_image_there_is(mixup, cutmix):
    for seed in range(20):
        images, targets = mix(*batch(), mixup=mixup, cutmix=cutmix, random=np.random.default_rng(seed))
        torch.testing.assert_close(images.mean((1, 2, 3)), targets[:, 1].float(), atol=1e-5, rtol=0)
        torch.testing.assert_close(targets.sum(1).float(), torch.ones(8), atol=1e-5, rtol=0)


def test_mixes_at_all():
    mixed = [mix(*batch(), mixup=0.8, cutmix=0.0, random=np.random.default_rng(seed))[1] for seed in range(20)]
    assert any(((targets > 0.1) & (targets < 0.9)).any() for targets in mixed)


def test_cutmix_keeps_pixels_and_mixup_does_not():
    images = [mix(*batch(), mixup=0.0, cutmix=1.0, random=np.random.default_rng(seed))[0] for seed in range(20)]
    assert {0.0, 1.0} == set(torch.cat(images).unique().tolist())
    images = [mix(*batch(), mixup=1.0, cutmix=0.0, random=np.random.default_rng(seed))[0] for seed in range(20)]
    assert len(torch.cat(images).unique()) > 10


def test_both_take_turns():
    kinds = set()
    for seed in range(20):
        images, _ = mix(*batch(), mixup=1.0, cutmix=1.0, random=np.random.default_rng(seed))
        kinds.add(bool(((images > 0) & (images < 1)).any()))
    assert kinds == {True, False}


def test_nothing_is_done_unless_wanted():
    images, targets = batch()
    unchanged = mix(images, targets, mixup=0.0, cutmix=0.0, random=np.random.default_rng(0))
    assert unchanged[0] is images
    assert unchanged[1] is targets


def test_probabilities_say_how_often_and_with_which():
    mixed = {"none": 0, "mixup": 0, "cutmix": 0}
    for seed in range(400):
        images, targets = mix(
            *batch(),
            mixup=1.0,
            cutmix=1.0,
            random=np.random.default_rng(seed),
            probability=0.5,
            cutmix_share=0.8,
        )
        is_mixup = bool(((images > 0) & (images < 1)).any())
        mixed["mixup" if is_mixup else "none" if set(targets[:, 0].tolist()) == {0.0, 1.0} else "cutmix"] += 1
    assert mixed["mixup"] == pytest.approx(40, abs=4 * 6)
    assert mixed["cutmix"] == pytest.approx(160, abs=4 * 10)
