"""Decoding and the evaluation transform, against timm's and by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from scalablevit.preprocessing import Preprocessing, measure_preprocessing, read_image


def random_image(height, width, mode="RGB", seed=0):
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(24, 24), (20, 32)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_agrees_with_timm(crop_mode, size, mode):
    channels = 3 if mode == "RGB" else 1
    preprocessing = Preprocessing(
        size=size,
        channels=channels,
        mean=(0.1, 0.2, 0.3)[:channels],
        std=(0.4, 0.5, 0.6)[:channels],
        interpolation="bilinear",
        crop_fraction=0.9,
        crop_mode=crop_mode,
    )
    image = random_image(37, 53, mode)
    ours = preprocessing.normalise(preprocessing.to_pixels(image)[None])[0]
    cfg = preprocessing.to_pretrained_cfg()
    theirs = create_transform(**resolve_data_config(pretrained_cfg=cfg))(image)
    assert ours.shape == (channels, *size)
    torch.testing.assert_close(ours, theirs)


def test_normalises_as_by_hand():
    preprocessing = Preprocessing(size=(1, 2), channels=1, mean=(0.2,), std=(0.4,))
    pixels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    torch.testing.assert_close(preprocessing.normalise(pixels), torch.tensor([[[[-0.5, 2.0]]]]))


def test_survives_a_json_file():
    before = Preprocessing(
        size=(30, 40), channels=1, mean=(0.1,), std=(0.7,), interpolation="bilinear", crop_fraction=0.8
    )
    after = Preprocessing.from_pretrained_cfg(json.loads(json.dumps(before.to_pretrained_cfg())))
    assert after == before


@pytest.mark.parametrize("cfg", [{}, {"input_size": [1, 64, 64], "mean": [0.5], "std": [0.5]}])
def test_defaults_are_timms(cfg):
    ours, theirs = Preprocessing.from_pretrained_cfg(cfg), resolve_data_config(pretrained_cfg=cfg or {"url": ""})
    assert (ours.channels, *ours.size) == tuple(theirs["input_size"])
    assert (ours.mean, ours.std) == (tuple(theirs["mean"]), tuple(theirs["std"]))
    assert (ours.interpolation, ours.crop_fraction) == (theirs["interpolation"], theirs["crop_pct"])
    assert ours.crop_mode == theirs["crop_mode"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": 4}, "channels is 4"),
        ({"size": (0, 8)}, r"size is \(0, 8\)"),
        ({"mean": (0.5,)}, r"mean is \(0.5,\); it must hold 3 numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "it must hold positive numbers"),
        ({"crop_fraction": 1.5}, "crop_fraction is 1.5"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'; it must be one of 'nearest'"),
        ({"crop_mode": "middle"}, "crop_mode is 'middle'"),
    ],
)
def test_refuses_what_is_not_possible(wrong, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**{"size": (8, 8), **wrong})


def test_turns_images_upright(tmp_path):
    image = Image.fromarray(np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned; to be shown, the image is turned clockwise by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.asarray(read_image(tmp_path / "turned.png", 1)).tolist() == [[40, 10], [50, 20], [60, 30]]


def test_scales_16_bits_down_to_8(tmp_path):
    Image.fromarray(np.array([[0, 257 * 7, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    for channels in (1, None):
        assert np.asarray(read_image(tmp_path / "deep.png", channels)).tolist() == [[0, 7, 255]]


def test_drops_transparency_without_a_warning(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "palette.png", transparency=bytes([0, 255]))
    assert np.asarray(read_image(tmp_path / "palette.png", 3)).tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_names_the_file_that_cannot_be_read(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png is not an image"):
        read_image(tmp_path / "text.png", 3)
    random_image(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read as an image"):
        read_image(tmp_path / "cut.png", 3)
    with pytest.raises(FileNotFoundError, match=r"missing\.png does not exist"):
        read_image(tmp_path / "missing.png", 3)


def save_all(folder, images):
    paths = [folder / f"{index}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    return paths


def test_measures_mean_and_deviation(tmp_path):
    paths = save_all(tmp_path, [Image.new("L", (30, 40), value) for value in (51, 153)])
    preprocessing = measure_preprocessing(paths)
    # Half of all pixels are 0.2 and half 0.6: they lie 0.2 around their mean.
    assert preprocessing == Preprocessing(size=(30, 30), channels=1, mean=(0.4,), std=(0.2,))


def test_one_image_in_colour_makes_a_set_one_in_colour(tmp_path):
    grey, colour = Image.new("L", (8, 8), 102), Image.new("RGB", (8, 8), (102, 0, 204))
    assert measure_preprocessing(save_all(tmp_path, [grey, grey])).channels == 1
    preprocessing = measure_preprocessing(save_all(tmp_path, [grey, colour]))
    assert preprocessing.channels == 3
    assert preprocessing.mean == pytest.approx((0.4, 0.2, 0.6))
    assert preprocessing.std[0] == 1.0  # of a channel that is the same everywhere, which is not to be divided by zero
    assert measure_preprocessing(save_all(tmp_path, [grey, colour]), channels=1).channels == 1


def test_large_images_are_seen_at_224_pixels_unless_told_otherwise(tmp_path):
    paths = save_all(tmp_path, [Image.new("L", (300, 500))])
    assert measure_preprocessing(paths).size == (224, 224)
    assert measure_preprocessing(paths, size=96).size == (96, 96)
