"""Augmentation by hand, and as a function of its generator alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from scalablevit.classification.augmentation import Augmentation, cut_out, erase, random_box, shift
from scalablevit.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=(8, 6), channels=1, mean=(0.5,), std=(0.5,), crop_mode="squash")


def augmentation(**options):
    usual = {"random_crop": "none", "padding": 0, "smallest_area": 0.5, "flip": 0.0, "erasing": 0.0}
    return Augmentation(preprocessing=PREPROCESSING, **{**usual, **options})


def image(height=8, width=6, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(1, 256, (height, width), dtype=np.uint8))


def test_shift_moves_and_fills_with_zeros():
    pixels = torch.arange(1, 10, dtype=torch.uint8).view(1, 3, 3)
    assert shift(pixels, 1, 0)[0].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert shift(pixels, -1, 2)[0].tolist() == [[0, 0, 4], [0, 0, 7], [0, 0, 0]]
    assert shift(pixels, 0, 0).tolist() == pixels.tolist()


def test_nothing_random_gives_the_evaluation_pixels():
    pixels = augmentation()(image(20, 30), np.random.default_rng(0))
    assert torch.equal(pixels, PREPROCESSING.to_pixels(image(20, 30)))


def test_certain_flip_exchanges_left_and_right():
    pixels = augmentation(flip=1.0)(image(), np.random.default_rng(0))
    assert torch.equal(pixels, torch.from_numpy(np.array(image())[:, ::-1].copy())[None])


def test_pad_moves_by_all_distances_up_to_the_padding():
    seen = set()
    for seed in range(300):
        pixels = augmentation(random_crop="pad", padding=2)(image(), np.random.default_rng(seed))
        for down in range(-2, 3):
            for right in range(-2, 3):
                if torch.equal(pixels, shift(PREPROCESSING.to_pixels(image()), down, right)):
                    seen.add((down, right))
    assert len(seen) == 25


@pytest.mark.parametrize("random_crop", ["pad", "resize", "none"])
def test_depends_on_its_generator_alone(random_crop):
    augment = augmentation(random_crop=random_crop, padding=2, flip=0.5, erasing=0.5)
    first, again, other = (augment(image(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first.shape, first.dtype) == ((1, 8, 6), torch.uint8)


def test_boxes_lie_inside_and_have_the_wanted_areas_and_ratios():
    for seed in range(200):
        top, left, height, width = random_box(
            100, 80, areas=(0.2, 0.4), ratios=(0.5, 2.0), random=np.random.default_rng(seed)
        )
        assert top >= 0
        assert left >= 0
        assert top + height <= 100
        assert left + width <= 80
        assert 0.19 < height * width / 8000 < 0.41
        assert 0.48 < width / height < 2.1


def test_no_box_where_none_fits():
    assert random_box(1, 1000, areas=(0.5, 1.0), ratios=(1.0, 1.0), random=np.random.default_rng(0)) is None


def test_cut_out_shows_a_part_of_the_image():
    # Columns get brighter to the right, so what is cut out spans fewer values than the image.
    gradient = Image.fromarray(np.tile(np.arange(0, 200, 2, dtype=np.uint8), (100, 1)))
    part = np.asarray(cut_out(gradient, PREPROCESSING, 0.3, np.random.default_rng(1)))
    assert part.shape == (8, 6)
    assert (np.diff(part[0].astype(int)) > 0).all()
    assert int(part.max()) - int(part.min()) < 190


def test_erase_changes_one_rectangle_and_not_its_argument():
    pixels = torch.zeros(3, 20, 20, dtype=torch.uint8)
    erased = erase(pixels, np.random.default_rng(0))
    assert not pixels.any()
    rows, columns = erased.any(0).any(1).nonzero()[:, 0], erased.any(0).any(0).nonzero()[:, 0]
    box = erased[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert 0.015 < box[0].numel() / 400 < 0.36
    assert (box > 0).float().mean() > 0.9  # noise, from 0 to 255


def test_erasing_fills_with_the_mean_or_with_a_normal_distribution():
    preprocessing = Preprocessing(size=(200, 200), channels=3, mean=(0.2, 0.6, 0.4), std=(0.02, 0.1, 0.05))
    pixels = torch.full((3, 200, 200), 255, dtype=torch.uint8)
    constant = erase(pixels, np.random.default_rng(0), "const", preprocessing)
    assert [sorted(set(channel.flatten().tolist())) for channel in constant] == [[51, 255], [153, 255], [102, 255]]
    normal = erase(pixels, np.random.default_rng(0), "pixel", preprocessing)
    box = (constant < 255).all(0)
    assert torch.equal(normal[:, ~box], pixels[:, ~box])  # the same rectangle
    filled = normal[:, box].double()
    assert filled.mean(1).tolist() == pytest.approx([51, 153, 102], abs=3)
    assert filled.std(1).tolist() == pytest.approx([255 * 0.02, 255 * 0.1, 255 * 0.05], rel=0.1)
